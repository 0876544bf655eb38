/* GET /metrics and GET /stats as text: of replicas with fake models that answer known requests. The
 * format is read back here by a small reader of its own: every line, families in one piece with
 * their HELP and TYPE first, buckets that only grow. */
#include <ctype.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "host/batch.h"
#include "host/engine_model.h"
#include "host/mem.h"
#include "host/model_metrics.h"
#include "net/metrics_text.h"
#include "net/stats_json.h"
#include "tests/engine_rig.h"
#include "tests/shim.h"

enum { MAX_FAKES = 2, NUM_LAYERS = 3, NUM_EXPERTS = 2, NUM_RANKS = 2 };

static const char NASTY_NAME[] = "a \"name\" with \\ and\nnewline \xff";

struct served {
    struct fake_model model[MAX_FAKES];
    struct dispatch *d;
    bool measures;
    int32_t num_ended;
    struct http_counters http;
    struct metrics_sources sources;
};

static struct served *starting;

static int64_t read_bytes; /* that the models' steps had to read */
static bool one_is_busy;   /* replica 1 does not tell of its memory and experts */

/* Layer 1 is dense; the model has routed 6 tokens to two experts each, and rank 0 holds more. */
static void measure(void *ctx, struct model_metrics *out) {
    static const int64_t tokens[NUM_LAYERS][NUM_EXPERTS] = {{4, 2}, {0, 0}, {1, 5}};
    bool silent = one_is_busy && ctx == &starting->model[1];
    if (!out->expert_tokens && !silent)
        out->expert_tokens = xcalloc((size_t)NUM_LAYERS * NUM_EXPERTS, sizeof(int64_t));
    if (!silent)
        memcpy(out->expert_tokens, tokens, sizeof tokens);
    out->num_layers = NUM_LAYERS;
    out->num_experts = NUM_EXPERTS;
    out->num_ranks = NUM_RANKS;
    out->rank[0] = (struct rank_metrics){.weight_bytes = 300,
                                         .kv_bytes = 60,
                                         .expert_tokens = 9,
                                         .has_comm = true,
                                         .comm_us = {[COMM_ALL_REDUCE] = 1500000}};
    out->rank[1] = (struct rank_metrics){
        .weight_bytes = 100, .kv_bytes = 20, .expert_tokens = 3, .has_comm = true};
    out->has_bandwidth = !silent;
    out->bandwidth_limit = 1e10;
    out->read_bytes = read_bytes;
}

static int start(const struct engine_options *o, void (*wake)(void *), void *wake_ctx,
                 struct engine **out, struct error *error) {
    struct engine_model model;
    fake_model_wrap(&starting->model[o->replica], RIG_MAX_LEN, &model);
    model.name = NASTY_NAME;
    model.ranks = NUM_RANKS;
    model.measure = starting->measures ? measure : NULL;
    return engine_create_with_model(o, &model, NULL, NULL, wake, wake_ctx, out, error);
}

static int32_t connections(void *ctx, struct connection_count *out, int32_t max) {
    (void)ctx;
    CHECK(max >= 2, "%d", max);
    out[0] = (struct connection_count){"line", 3};
    out[1] = (struct connection_count){"http", 4};
    return 2;
}

static void on_event(void *ctx, const struct engine_event *e) {
    ((struct served *)ctx)->num_ended += e->kind != EVENT_TOKEN;
}

/* The i-th request, of 10 prompt tokens and 4 generated. */
static int submit(struct served *s, int32_t i) {
    struct request_params p;
    struct error error = {0};
    uint64_t handle;
    request_params_default(&p);
    p.max_tokens = 4;
    p.num_tokens = 10;
    p.tokens = xcalloc(10, sizeof *p.tokens);
    for (int32_t j = 0; j < 10; j++)
        p.tokens[j] = (10 * i + j) % RIG_VOCAB;
    return dispatch_submit(s->d, &p, s, &handle, &error);
}

static void wait_for_ends(struct served *s, int32_t n) {
    while (s->num_ended < n) {
        dispatch_wait(s->d, 100);
        dispatch_drain(s->d, on_event, s);
    }
}

static void serve(struct served *s, int32_t n) {
    for (int32_t i = 0; i < n; i++)
        EXPECT_INT_EQ(submit(s, i), 0);
    wait_for_ends(s, n);
}

/* options: NULL for those of the rig. */
static void open_with(struct served *s, const struct engine_options *options, int32_t replicas,
                      bool measures) {
    struct engine_options o;
    struct error error = {0};
    memset(s, 0, sizeof *s);
    rig_options(&o);
    if (options)
        o = *options;
    o.replicas = replicas;
    s->measures = measures;
    for (int32_t i = 0; i < replicas; i++)
        fake_model_init(&s->model[i], RIG_VOCAB, 100, o.max_num_seqs + 8);
    starting = s;
    read_bytes = 12345678901;
    one_is_busy = false;
    int rc = dispatch_create_with(&o, start, NULL, NULL, &s->d, &error);
    CHECK(rc == 0, "dispatch_create_with: %s", error.text);
    s->sources = (struct metrics_sources){.dispatch = s->d, .http = &s->http};
    s->sources.connections = connections;
}

static void open_served(struct served *s, int32_t replicas, bool measures) {
    open_with(s, NULL, replicas, measures);
}

static void close_served(struct served *s) {
    int32_t replicas = 0;
    struct dispatch_stats stats;
    dispatch_stats(s->d, &stats);
    replicas = stats.num_replicas;
    dispatch_destroy(s->d);
    for (int32_t i = 0; i < replicas; i++)
        fake_model_deinit(&s->model[i]);
}

/* The text with a final NUL. */
static struct buffer text_of(const struct served *s) {
    struct buffer text = {0};
    metrics_text(&text, &s->sources);
    buffer_putc(&text, 0);
    return text;
}

/* ---- reading the format ---------------------------------------------------------------------- */

/* The labels' end, past '}'; NULL when they are malformed. */
static const char *skip_labels(const char *p) {
    if (*p++ != '{')
        return NULL;
    while (*p != '}') {
        while (isalnum((unsigned char)*p) || *p == '_')
            p++;
        if (*p++ != '=' || *p++ != '"')
            return NULL;
        for (; *p != '"'; p++) {
            if (*p == '\\' && !strchr("\\\"n", *++p))
                return NULL;
            if (*p == '\n' || !*p)
                return NULL;
        }
        p++;
        p += *p == ',';
    }
    return p + 1;
}

/* Checks one line of a sample against the family that it stands in. */
static bool check_sample(const char *line, size_t len, const char *family, const char *type) {
    size_t name = 0, prefix = strlen(family);
    while (name < len && (isalnum((unsigned char)line[name]) || line[name] == '_'))
        name++;
    bool of_family = name >= prefix && !memcmp(line, family, prefix);
    size_t suffix = name - prefix;
    bool histogram = !strcmp(type, "histogram");
    if (!of_family || (suffix > 0) != histogram)
        return false;
    const char *p = line[name] == '{' ? skip_labels(line + name) : line + name;
    char *end;
    if (!p || *p != ' ')
        return false;
    strtod(p + 1, &end);
    return end == line + len;
}

static void check_format(const char *text) {
    char family[128] = "", type[32] = "", seen[8192] = "";
    bool typed = false;
    for (const char *line = text, *end; *line; line = end + 1) {
        end = strchr(line, '\n');
        ASSERT_TRUE(end != NULL);
        char key[160];
        if (sscanf(line, "# HELP %127s", family) == 1) {
            snprintf(key, sizeof key, " %s ", family);
            EXPECT_TRUE(!strstr(seen, key)); /* each family once */
            strcat(seen, key);
            typed = false;
        } else if (!strncmp(line, "# TYPE ", 7)) {
            char name[128];
            EXPECT_INT_EQ(sscanf(line, "# TYPE %127s %31s", name, type), 2);
            EXPECT_STR_EQ(name, family);
            typed = true;
        } else if (!typed || !check_sample(line, (size_t)(end - line), family, type)) {
            FAIL("in family %s: %.*s", family, (int)(end - line), line);
        }
    }
}

#define MODEL "model_name=\"a \\\"name\\\" with \\\\ and\\nnewline \xef\xbf\xbd\""

/* The value of a series with these labels behind the model's ("" or ",le=..."); -1: there is none.
 */
static double value_of(const char *text, const char *name, const char *labels) {
    char key[512];
    snprintf(key, sizeof key, "\nmoeserve_%s{" MODEL "%s} ", name, labels);
    const char *at = strstr(text, key);
    return at ? strtod(at + strlen(key), NULL) : -1;
}

static void check_buckets(const char *text, const char *name, double count) {
    char key[512], plain[64];
    double last = 0;
    int32_t n = 0;
    snprintf(key, sizeof key, "\nmoeserve_%s_bucket{", name);
    for (const char *p = text; (p = strstr(p, key)); n++) {
        p = skip_labels(p + strlen(key) - 1);
        double v = strtod(p, NULL);
        EXPECT_TRUE(v >= last);
        last = v;
    }
    EXPECT_TRUE(n > 1);
    EXPECT_NEAR(last, count, 0);
    snprintf(plain, sizeof plain, "%s_count", name);
    EXPECT_NEAR(value_of(text, plain, ""), count, 0);
}

/* ---- GET /metrics ---------------------------------------------------------------------------- */

TEST(MetricsText, EveryLineIsWellFormed) {
    struct served s;
    open_served(&s, 2, true);
    http_counters_add(&s.http, "/metrics", 200);
    serve(&s, 3);
    struct buffer text = text_of(&s);
    check_format(text.data);
    buffer_deinit(&text);
    close_served(&s);
}

TEST(MetricsText, KnownRequestsOverTwoReplicasAreSummed) {
    struct served s;
    struct dispatch_stats stats;
    open_served(&s, 2, false);
    serve(&s, 6);
    dispatch_stats(s.d, &stats);
    EXPECT_INT_GT(stats.replica[0].requests_total, 0);
    EXPECT_INT_GT(stats.replica[1].requests_total, 0);
    struct buffer text = text_of(&s);
    const char *t = text.data;
    EXPECT_NEAR(value_of(t, "request_success_total", ",finished_reason=\"length\""), 6, 0);
    EXPECT_NEAR(value_of(t, "request_success_total", ",finished_reason=\"stop\""), 0, 0);
    EXPECT_NEAR(value_of(t, "request_success_total", ",finished_reason=\"abort\""), 0, 0);
    EXPECT_NEAR(value_of(t, "request_failures_total", ",code=\"timeout\""), 0, 0);
    EXPECT_NEAR(value_of(t, "prompt_tokens_total", ""), 60, 0);
    EXPECT_NEAR(value_of(t, "prefix_cache_queries_total", ""), 60, 0);
    EXPECT_NEAR(value_of(t, "generation_tokens_total", ""), 24, 0);
    EXPECT_NEAR(value_of(t, "num_requests_running", ""), 0, 0);
    EXPECT_NEAR(value_of(t, "num_requests_waiting", ""), 0, 0);
    EXPECT_NEAR(value_of(t, "kv_cache_usage_perc", ""), 0, 0);
    EXPECT_NEAR(value_of(t, "kv_blocks", ",state=\"free\"") +
                    value_of(t, "kv_blocks", ",state=\"cached\""),
                200, 0);
    EXPECT_NEAR(value_of(t, "connections", ",protocol=\"http\""), 4, 0);
    EXPECT_TRUE(value_of(t, "last_step_age_seconds", "") >= 0);
    check_buckets(t, "time_to_first_token_seconds", 6);
    check_buckets(t, "inter_token_latency_seconds", 18);
    check_buckets(t, "e2e_request_latency_seconds", 6);
    check_buckets(t, "request_prompt_tokens", 6);
    check_buckets(t, "iteration_tokens_total", value_of(t, "steps_total", ""));
    EXPECT_NEAR(value_of(t, "request_prompt_tokens_bucket", ",le=\"5.0\""), 0, 0);
    EXPECT_NEAR(value_of(t, "request_prompt_tokens_bucket", ",le=\"10.0\""), 6, 0);
    EXPECT_NEAR(value_of(t, "request_prompt_tokens_bucket", ",le=\"200.0\""), 6, 0);
    EXPECT_NEAR(value_of(t, "request_prompt_tokens_bucket", ",le=\"500.0\""), -1, 0);
    EXPECT_NEAR(value_of(t, "expert_tokens_total", ",layer=\"0\",expert=\"0\""), -1, 0);
    EXPECT_TRUE(strstr(t, "\nprocess_resident_memory_bytes ") != NULL);
    buffer_deinit(&text);
    close_served(&s);
}

TEST(MetricsText, WhatModelsMeasureIsToldByReplicaAndRank) {
    struct served s;
    open_served(&s, 2, true);
    struct buffer text = text_of(&s);
    const char *t = text.data;
    EXPECT_NEAR(value_of(t, "expert_tokens_total", ",layer=\"0\",expert=\"0\""), 8, 0);
    EXPECT_NEAR(value_of(t, "expert_tokens_total", ",layer=\"1\",expert=\"0\""), -1, 0); /* dense */
    EXPECT_NEAR(value_of(t, "expert_tokens_total", ",layer=\"2\",expert=\"1\""), 10, 0);
    EXPECT_NEAR(value_of(t, "rank_memory_bytes", ",replica=\"1\",rank=\"0\",kind=\"weights\""), 300,
                0);
    EXPECT_NEAR(value_of(t, "rank_imbalance_ratio", ",replica=\"0\",of=\"expert_tokens\""), 1.5,
                1e-12);
    EXPECT_NEAR(value_of(t, "rank_imbalance_ratio", ",replica=\"1\",of=\"bytes\""), 1.5, 1e-12);
    EXPECT_NEAR(value_of(t, "comm_seconds_total", ",replica=\"0\",rank=\"0\",op=\"all_reduce\""),
                1.5, 1e-12);
    EXPECT_NEAR(value_of(t, "memory_bandwidth_utilization", ""), 0, 0); /* no step yet */
    EXPECT_NEAR(value_of(t, "memory_bandwidth_limit_bytes_per_second", ""), 2e10, 0);
    EXPECT_NEAR(value_of(t, "memory_read_bytes_total", ""), 24691357802, 0);
    EXPECT_NEAR(value_of(t, "last_step_age_seconds", ""), -1, 0);
    buffer_deinit(&text);
    close_served(&s);
}

TEST(MetricsText, HttpRequestsAreCountedByRouteAndStatus) {
    struct served s;
    struct http_counters *c = &s.http;
    open_served(&s, 1, false);
    http_counters_add(c, "/health", 200);
    http_counters_add(c, "/health", 200);
    http_counters_add(c, "/health", 503);
    http_counters_add(c, NULL, 404);
    struct buffer text = text_of(&s);
    const char *t = text.data, *name = "http_requests_total";
    EXPECT_NEAR(value_of(t, name, ",path=\"/health\",status=\"200\""), 2, 0);
    EXPECT_NEAR(value_of(t, name, ",path=\"/health\",status=\"503\""), 1, 0);
    EXPECT_NEAR(value_of(t, name, ",path=\"other\",status=\"404\""), 1, 0);
    buffer_deinit(&text);
    for (int32_t i = 0; i < 1000; i++)
        http_counters_add(c, "/x", 1000 + i);
    EXPECT_INT_EQ(c->num_entries, MAX_HTTP_COUNTERS);
    EXPECT_INT_EQ(c->entries[MAX_HTTP_COUNTERS - 1].count, 1000 - (MAX_HTTP_COUNTERS - 1 - 3));
    http_counters_add(c, "/health", 200); /* those that have a place keep it */
    EXPECT_INT_EQ(c->entries[0].count, 3);
    close_served(&s);
}

/* ---- GET /stats ------------------------------------------------------------------------------ */

static int64_t int_at(json_t *root, const char *key) {
    json_t *v = json_object_get(root, key);
    EXPECT_TRUE(json_is_integer(v));
    return json_integer_value(v);
}

TEST(StatsJson, HoldsTheServerItsReplicasAndItsExperts) {
    struct served s;
    struct buffer text = {0};
    open_served(&s, 2, true);
    serve(&s, 4);
    stats_json(&text, &s.sources);
    json_t *root = json_loadb(text.data, text.len, 0, NULL);
    ASSERT_TRUE(root != NULL);
    json_t *model = json_object_get(root, "model"), *replicas = json_object_get(root, "replicas");
    json_t *ranks = json_object_get(root, "ranks"), *experts = json_object_get(root, "experts");
    EXPECT_STR_EQ(json_string_value(json_object_get(model, "name")),
                  "a \"name\" with \\ and\nnewline \xef\xbf\xbd");
    EXPECT_INT_EQ(int_at(model, "num_layers"), NUM_LAYERS);
    EXPECT_INT_EQ(int_at(model, "num_experts"), NUM_EXPERTS);
    EXPECT_INT_EQ(int_at(model, "max_model_len"), RIG_MAX_LEN);
    EXPECT_INT_EQ(int_at(root, "requests_total"), 4);
    EXPECT_INT_EQ(int_at(root, "completion_tokens_total"), 16);
    EXPECT_INT_EQ(int_at(root, "connections"), 7);
    EXPECT_TRUE(json_is_true(json_object_get(root, "healthy")));
    EXPECT_TRUE(json_is_real(json_object_get(root, "last_step_age_ms")));
    EXPECT_INT_EQ(json_array_size(replicas), 2);
    EXPECT_INT_EQ(int_at(json_array_get(replicas, 0), "requests_total") +
                      int_at(json_array_get(replicas, 1), "requests_total"),
                  4);
    EXPECT_INT_EQ(json_array_size(ranks), 2 * NUM_RANKS);
    EXPECT_INT_EQ(int_at(json_array_get(ranks, 3), "replica"), 1);
    EXPECT_INT_EQ(int_at(json_array_get(ranks, 3), "rank"), 1);
    EXPECT_INT_EQ(int_at(json_array_get(ranks, 3), "expert_tokens"), 3);
    EXPECT_INT_EQ(int_at(json_array_get(ranks, 0), "bytes"), 360);
    EXPECT_TRUE(json_is_true(json_object_get(experts, "enabled")));
    json_t *counts = json_object_get(experts, "counts");
    EXPECT_INT_EQ(json_array_size(counts), NUM_LAYERS);
    EXPECT_INT_EQ(json_integer_value(json_array_get(json_array_get(counts, 2), 1)), 10);
    json_decref(root);
    buffer_deinit(&text);
    close_served(&s);
}

TEST(StatsJson, WhatIsNotKnownIsNullOrEmpty) {
    struct served s;
    struct buffer text = {0};
    open_served(&s, 1, false);
    s.sources.connections = NULL;
    stats_json(&text, &s.sources);
    json_t *root = json_loadb(text.data, text.len, 0, NULL);
    ASSERT_TRUE(root != NULL);
    json_t *experts = json_object_get(root, "experts");
    EXPECT_TRUE(json_is_null(json_object_get(root, "last_step_age_ms")));
    EXPECT_TRUE(json_is_null(json_object_get(root, "connections")));
    EXPECT_TRUE(json_is_false(json_object_get(experts, "enabled")));
    EXPECT_INT_EQ(json_array_size(json_object_get(experts, "counts")), 0);
    EXPECT_INT_EQ(json_array_size(json_object_get(root, "ranks")), 0);
    json_decref(root);
    buffer_deinit(&text);
    close_served(&s);
}

/* Sums over replicas cannot do without one of them: a counter would fall. */
TEST(MetricsText, SumsOfWhatAReplicaDoesNotTellAreMissing) {
    struct served s;
    open_served(&s, 2, true);
    one_is_busy = true;
    struct buffer text = text_of(&s);
    EXPECT_TRUE(strstr(text.data, "expert_tokens_total") == NULL);
    EXPECT_TRUE(strstr(text.data, "memory_read_bytes_total") == NULL);
    EXPECT_TRUE(strstr(text.data, "rank_memory_bytes") != NULL);
    buffer_deinit(&text);
    one_is_busy = false;
    text = text_of(&s);
    EXPECT_NEAR(value_of(text.data, "memory_read_bytes_total", ""), 2 * 12345678901.0, 0);
    EXPECT_TRUE(strstr(text.data, "expert_tokens_total") != NULL);
    buffer_deinit(&text);
    close_served(&s);
}

static double utilization(struct served *s) {
    struct buffer text = text_of(s);
    double value = value_of(text.data, "memory_bandwidth_utilization", "");
    buffer_deinit(&text);
    return value;
}

/* The first looks at four steps of 10 ms or more; a step that takes longer than the window between
 * two looks belongs to the window in which it ends. */
TEST(MetricsText, UtilizationWaitsForAStepThatRuns) {
    struct served s;
    open_served(&s, 1, true);
    s.model[0].step_us = 10000;
    serve(&s, 1);
    double before = utilization(&s);
    EXPECT_TRUE(before > 0);
    atomic_store(&s.model[0].hold, true);
    EXPECT_INT_EQ(submit(&s, 1), 0);
    rig_sleep_ms(1200);
    EXPECT_NEAR(utilization(&s), before, 0);
    read_bytes += 6000000000; /* in a second at least, of 10 GB/s */
    atomic_store(&s.model[0].hold, false);
    wait_for_ends(&s, 2);
    double during = utilization(&s);
    EXPECT_TRUE(during > 0 && during <= 0.55);
    rig_sleep_ms(1200);
    EXPECT_NEAR(utilization(&s), 0, 0); /* nothing runs */
    close_served(&s);
}

/* ---- when to come back ----------------------------------------------------------------------- */

/* Requests of 5 steps of 10 ms each, one at a time: 20 a second at most, so half of 100 take 2.5 s.
 * (Where the machine is busy steps take longer.) */
TEST(MetricsText, RetryAfterFollowsFromWhatWaitsAndWhatIsDone) {
    struct rig r;
    struct engine_options o;
    rig_options(&o);
    o.max_num_seqs = 1;
    rig_open_with(&r, &o, RIG_VOCAB, 64, -1, NULL);
    r.model.step_us = 10000;
    EXPECT_INT_EQ(engine_retry_after_s(r.engine), 1); /* nobody waits */
    for (int32_t i = 0; i < 8; i++)
        rig_submit(&r, rig_client(&r, 10 * i, 4, 5));
    rig_run(&r);
    EXPECT_INT_EQ(engine_retry_after_s(r.engine), 1);
    atomic_store(&r.model.hold, true);
    for (int32_t i = 0; i < 100; i++)
        rig_submit(&r, rig_client(&r, i, 4, 5));
    EXPECT_INT_GE(engine_retry_after_s(r.engine), 3);
    EXPECT_INT_LE(engine_retry_after_s(r.engine), 12);
    for (int32_t i = 0; i < r.num_clients; i++)
        engine_cancel(r.engine, r.clients[i].handle);
    atomic_store(&r.model.hold, false);
    rig_run(&r);
    EXPECT_INT_EQ(engine_retry_after_s(r.engine), 1);
    rig_close(&r);
}

/* Eight requests, nine seconds of nothing, then a burst while no step has ended yet. */
TEST(MetricsText, ABurstAfterAPauseIsJudgedByWhatWasDoneBefore) {
    struct rig r;
    struct engine_options o;
    rig_options(&o);
    o.max_num_seqs = 1;
    rig_open_with(&r, &o, RIG_VOCAB, 64, -1, NULL);
    r.model.step_us = 1000;
    for (int32_t i = 0; i < 8; i++)
        rig_submit(&r, rig_client(&r, 10 * i, 4, 5));
    rig_run(&r);
    rig_sleep_ms(9000);
    atomic_store(&r.model.hold, true);
    for (int32_t i = 0; i < 24; i++)
        rig_submit(&r, rig_client(&r, i, 4, 5));
    EXPECT_INT_LE(engine_retry_after_s(r.engine), 3); /* 12 of 5 ms each */
    rig_sleep_ms(1500); /* more than a second, and than ten times the slowest step */
    EXPECT_INT_EQ(engine_retry_after_s(r.engine), 60);
    for (int32_t i = 0; i < r.num_clients; i++)
        engine_cancel(r.engine, r.clients[i].handle);
    atomic_store(&r.model.hold, false);
    rig_run(&r);
    rig_close(&r);
}

/* Both replicas' steps are held. Each has room for one request that runs and five that wait. */
TEST(MetricsText, ReplicasThatHoldTheirPromptTokensRefuse) {
    struct served s;
    struct engine_options o;
    int32_t accepted = 0, refused = 0;
    rig_options(&o);
    o.max_num_seqs = 1;
    o.max_queued_tokens = 50;
    open_with(&s, &o, 2, false);
    EXPECT_INT_EQ(dispatch_retry_after_s(s.d), 1);
    for (int32_t i = 0; i < 2; i++)
        atomic_store(&s.model[i].hold, true);
    for (int32_t i = 0; i < 30; i++) {
        int rc = submit(&s, i);
        accepted += rc == 0;
        refused += rc == ERR_OVERLOADED;
    }
    EXPECT_INT_EQ(accepted + refused, 30);
    EXPECT_INT_GE(accepted, 10);
    EXPECT_INT_LE(accepted, 12); /* whether a request ran already when the last one came */
    EXPECT_INT_EQ(dispatch_retry_after_s(s.d), 5); /* nothing has been computed yet */
    struct buffer text = text_of(&s);
    EXPECT_NEAR(value_of(text.data, "request_failures_total", ",code=\"overloaded\""), refused, 0);
    buffer_deinit(&text);
    for (int32_t i = 0; i < 2; i++)
        atomic_store(&s.model[i].hold, false);
    wait_for_ends(&s, accepted);
    EXPECT_INT_EQ(submit(&s, 0), 0);
    wait_for_ends(&s, accepted + 1);
    close_served(&s);
}
