/* Model folders: one file or several shards with an index; missing, lying and hostile indexes; and
 * real files with random damage. */
#include "host/checkpoint.h"

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "host/mem.h"
#include "host/weights.h"
#include "tests/shim.h"
#include "tests/tensor_file.h"

#define INDEX "model.safetensors.index.json"

/* Two shards: a and b in one.safetensors, c in two.safetensors. */
static void write_shards(const char *dir) {
    static const float values[] = {1, 2, 3};
    struct tensor_file f = {0};
    tensor_file_add(&f, "b", "F32", "1", values + 1, 4);
    tensor_file_add(&f, "a", "F32", "1", values, 4);
    tensor_file_write(&f, in_folder(dir, "one.safetensors"));
    tensor_file_add(&f, "c", "F32", "1", values + 2, 4);
    tensor_file_write(&f, in_folder(dir, "two.safetensors"));
}

/* Texts use ' for ". */
static void write_index(const char *dir, const char *text) {
    char json[4096];
    size_t n = strlen(text);
    for (size_t i = 0; i < n; i++)
        json[i] = text[i] == '\'' ? '"' : text[i];
    write_file(in_folder(dir, INDEX), json, n);
}

#define GOOD_MAP   "'a':'one.safetensors','b':'one.safetensors','c':'two.safetensors'"
#define GOOD_INDEX "{'metadata':{'total_size':12},'weight_map':{" GOOD_MAP "}}"

static int64_t file_size(const char *path) {
    struct stat st;
    return stat(path, &st) == 0 ? st.st_size : -1;
}

static void expect_good_index_opens(const char *dir) {
    struct checkpoint *c;
    struct error e = {0};
    write_index(dir, GOOD_INDEX);
    if (checkpoint_open(dir, &c, &e) != 0)
        FAIL("%s", e.text);
    checkpoint_close(c);
}

TEST(Checkpoint, FindsTensorsInTheirShards) {
    const char *dir = scratch_folder("checkpoint_sharded");
    struct checkpoint *c;
    write_shards(dir);
    write_index(dir, GOOD_INDEX);
    ASSERT_INT_EQ(checkpoint_open(dir, &c, NULL), 0);
    ASSERT_INT_EQ(checkpoint_num_tensors(c), 3);
    for (int i = 0; i < 3; i++) {
        const struct tensor_view *t = checkpoint_find(c, (char[]){(char)('a' + i), 0});
        ASSERT_TRUE(t != NULL && t == checkpoint_at(c, (size_t)i));
        EXPECT_NEAR(dtype_load(t->dtype, t->data, 0), i + 1, 0);
        EXPECT_TRUE(strstr(t->path, i < 2 ? "/one.safetensors" : "/two.safetensors") != NULL);
    }
    EXPECT_TRUE(checkpoint_find(c, "d") == NULL);
    EXPECT_INT_EQ(checkpoint_bytes(c), file_size(in_folder(dir, "one.safetensors")) +
                                           file_size(in_folder(dir, "two.safetensors")));
    checkpoint_close(c);
    checkpoint_close(NULL);
}

TEST(Checkpoint, TheFileWithoutIndexWins) {
    const char *dir = scratch_folder("checkpoint_single");
    struct tensor_file f = {0};
    struct checkpoint *c;
    struct error e = {0};
    EXPECT_INT_EQ(checkpoint_open(dir, &c, &e), ERR_NOT_FOUND);
    EXPECT_TRUE(c == NULL && strstr(e.text, "/checkpoint_single: neither model.safetensors nor"));
    write_index(dir, "{'weight_map':{'x':'missing.safetensors'}}");
    tensor_file_add(&f, "only", "BF16", "2", NULL, 4);
    tensor_file_write(&f, in_folder(dir, "model.safetensors"));
    ASSERT_INT_EQ(checkpoint_open(dir, &c, NULL), 0);
    EXPECT_INT_EQ(checkpoint_num_tensors(c), 1);
    checkpoint_close(c);
}

TEST(Checkpoint, FoldersWithPyTorchFilesOnlySayWhatToDo) {
    const char *dir = scratch_folder("checkpoint_bin");
    struct checkpoint *c;
    struct error e = {0};
    write_file(in_folder(dir, "pytorch_model.bin"), "PK", 2);
    EXPECT_INT_EQ(checkpoint_open(dir, &c, &e), ERR_UNSUPPORTED);
    EXPECT_TRUE(strstr(e.text, "convert them to safetensors") != NULL);
    EXPECT_INT_EQ(checkpoint_open("/nonexistent/model", &c, &e), ERR_NOT_FOUND);
}

TEST(Checkpoint, RefusesEachBadIndexAndThenOpensAGoodOne) {
    static const struct {
        const char *index;
        const char *messages[3];
    } table[] = {
        {"", {INDEX ": not valid JSON"}},
        {"[]", {INDEX ": weight_map: expected an object"}},
        {"{}", {INDEX ": weight_map: expected an object"}},
        {"{'weight_map':[]}", {"weight_map: expected an object"}},
        {"{'weight_map':{}}", {"weight_map: expected an object"}},
        {"{'weight_map':{'a':7}}", {"weight_map: a: expected a file name"}},
        {"{'weight_map':{'a':null}}", {"weight_map: a: expected a file name"}},
        {"{'weight_map':{'a':'one.safetensors','a':'two.safetensors'}}", {"duplicate"}},
        /* all missing shards at once */
        {"{'weight_map':{" GOOD_MAP ",'d':'three.safetensors','e':'four.safetensors'}}",
         {"/three.safetensors: No such file", "/four.safetensors: No such file"}},
        /* a tensor that its shard does not have */
        {"{'weight_map':{'a':'two.safetensors','c':'two.safetensors','d':'one.safetensors'}}",
         {"/two.safetensors: tensor a is missing", "/one.safetensors: tensor d is missing"}},
        {"{'weight_map':{'a':'../checkpoint_bad/one.safetensors'}}",
         {"shard \"../checkpoint_bad/one.safetensors\" is not a plain file name"}},
        {"{'weight_map':{'a':'/etc/passwd'}}", {"\"/etc/passwd\" is not a plain file name"}},
        {"{'weight_map':{'a':'sub/one.safetensors'}}", {"not a plain file name"}},
        {"{'weight_map':{'a':'..\\\\one.safetensors'}}", {"not a plain file name"}},
        {"{'weight_map':{'a':'..'}}", {"not a plain file name"}},
        {"{'weight_map':{'a':'.'}}", {"not a plain file name"}},
        {"{'weight_map':{'a':''}}", {"not a plain file name"}},
        {"{'weight_map':{'a':'" INDEX "','b':'one.safetensors'}}", {INDEX ": a header of"}},
        {"{'weight_map':{'a':'folder','b':'one.safetensors'}}", {"/folder: not a regular file"}},
        {"{'weight_map':{'a':'short.safetensors'}}", {"/short.safetensors: 3 bytes are too few"}},
    };
    const char *dir = scratch_folder("checkpoint_bad");
    write_shards(dir);
    mkdir(in_folder(dir, "folder"), 0777);
    write_file(in_folder(dir, "short.safetensors"), "abc", 3);
    for (size_t i = 0; i < sizeof table / sizeof table[0]; i++) {
        struct checkpoint *c;
        struct error e = {0};
        write_index(dir, table[i].index);
        int rc = checkpoint_open(dir, &c, &e);
        EXPECT_TRUE(rc < 0 && rc == e.code && c == NULL);
        for (int k = 0; k < 3 && table[i].messages[k]; k++)
            if (!strstr(e.text, table[i].messages[k]))
                FAIL("%s: message \"%s\" lacks \"%s\"", table[i].index, e.text,
                     table[i].messages[k]);
        expect_good_index_opens(dir);
    }
}

TEST(Checkpoint, AShardMayBeALink) {
    const char *dir = scratch_folder("checkpoint_link"), *blobs = scratch_folder("blobs");
    struct checkpoint *c;
    write_shards(blobs);
    EXPECT_INT_EQ(symlink("../blobs/one.safetensors", in_folder(dir, "shard.safetensors")), 0);
    write_index(dir, "{'weight_map':{'b':'shard.safetensors'}}");
    ASSERT_INT_EQ(checkpoint_open(dir, &c, NULL), 0);
    EXPECT_INT_EQ(checkpoint_num_tensors(c), 1); /* a is not listed */
    EXPECT_TRUE(checkpoint_find(c, "b") != NULL);
    checkpoint_close(c);
}

/* ------------------------------------------------------------------------------- golden folders */

/* Calls fn with each folder of tests/data/golden; returns how many. */
static int each_golden(void (*fn)(const char *dir)) {
    char root[256], dir[512];
    struct dirent *d;
    int n = 0;
    snprintf(root, sizeof root, "%s/golden", shim_data_dir());
    DIR *list = opendir(root);
    while (list && (d = readdir(list))) {
        if (d->d_name[0] == '.' || d->d_type == DT_REG)
            continue;
        snprintf(dir, sizeof dir, "%s/%s", root, d->d_name);
        fn(dir);
        n++;
    }
    if (list)
        closedir(list);
    return n;
}

static void expect_opens(const char *dir) {
    struct model_config config;
    struct weights w;
    struct error e = {0};
    int rc = model_config_load(dir, &config, &e);
    if (rc == 0)
        rc = weights_open(dir, &config, &w, &e);
    if (rc != 0) {
        FAIL("%s: %s", dir, e.text);
        return;
    }
    EXPECT_INT_GT(w.total_bytes, 0);
    EXPECT_INT_LE(w.total_bytes, checkpoint_bytes(w.checkpoint));
    /* The count of the config is the count of the files, scales aside. */
    int64_t elements = 0;
    for (size_t i = 0; i < checkpoint_num_tensors(w.checkpoint); i++) {
        const struct tensor_view *t = checkpoint_at(w.checkpoint, i);
        if (!strstr(t->name, "_scale"))
            elements += (int64_t)(t->bytes / dtype_bytes(t->dtype));
    }
    EXPECT_INT_EQ(elements, model_config_parameters(&config));
    weights_close(&w);
}

TEST(Checkpoint, OpensEveryGoldenFolder) {
    EXPECT_INT_GE(each_golden(expect_opens), 1);
}

/* ------------------------------------------------------------------------------- random damage */

static uint64_t next_random(uint64_t *state) {
    uint64_t z = *state += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

/* Damages 1 to 4 places of the length field or the header, or cuts the file. */
static size_t mutate(char *data, size_t len, size_t header, uint64_t *random) {
    static const char likely[] = "0123456789{}[]\",:-.eEFBIU\\u";
    for (uint64_t n = 1 + next_random(random) % 4; n > 0; n--) {
        uint64_t r = next_random(random);
        size_t at = r >> 8 & 7 ? 8 + (r >> 16) % header : (r >> 16) % 8;
        if (r % 3 == 0)
            data[at] ^= (char)(1 << (r >> 12 & 7));
        else if (r % 3 == 1)
            data[at] = likely[(r >> 48) % (sizeof likely - 1)];
        else
            data[at] = (char)(r >> 56);
    }
    return next_random(random) % 16 == 0 ? next_random(random) % (len + 1) : len;
}

/* Opens the folder's checkpoint; the verdict is success, or a message and a code. */
static bool judged(const char *dir, const struct model_config *config) {
    struct weights w;
    struct error e = {0};
    int rc = weights_open(dir, config, &w, &e);
    if (rc == 0)
        weights_close(&w);
    else
        EXPECT_TRUE(rc < 0 && e.code < 0 && e.text[0] && w.layers == NULL);
    return rc == 0;
}

TEST(Checkpoint, RandomlyDamagedHeadersAreRefusedOrReadButNeverCrash) {
    enum { VARIANTS = 1500 };
    char golden[256];
    const char *dir = scratch_folder("checkpoint_damaged");
    uint64_t seed = 20240603, random = seed;
    struct model_config config;
    struct error e = {0};
    char *good;
    size_t len, accepted = 0;
    snprintf(golden, sizeof golden, "%s/golden/mixtral", shim_data_dir());
    if (!file_exists(in_folder(golden, "model.safetensors")))
        SKIP("tests/data/golden/mixtral is not there");
    ASSERT_INT_EQ(model_config_load(golden, &config, &e), 0);
    ASSERT_INT_EQ(file_read(in_folder(golden, "model.safetensors"), 1 << 24, &good, &len, &e), 0);
    uint64_t header = 0;
    memcpy(&header, good, 8);
    char *bytes = xmalloc(len);
    for (int i = 0; i < VARIANTS; i++) {
        memcpy(bytes, good, len);
        write_file(in_folder(dir, "model.safetensors"), bytes,
                   mutate(bytes, len, (size_t)header, &random));
        accepted += judged(dir, &config);
    }
    printf("seed %llu: %zu of %d damaged files opened\n", (unsigned long long)seed, accepted,
           VARIANTS);
    EXPECT_INT_LT(accepted, VARIANTS / 10);
    write_file(in_folder(dir, "model.safetensors"), good, len);
    EXPECT_TRUE(judged(dir, &config));
    free(bytes);
    free(good);
}
