#include "checkpoint.h"

#include <stdlib.h>
#include <string.h>

#include "json.h"
#include "mem.h"

#define INDEX_MAX_BYTES ((size_t)32 << 20)

enum { MAX_SHARDS = 4096 };

struct checkpoint {
    struct safetensors **shards; /* owned */
    size_t num_shards;
    struct tensor_view *tensors; /* sorted by name; names and data belong to the shards */
    size_t num_tensors;
    size_t bytes;
};

/* One line of the index: tensor -> shard. Both borrowed from the JSON document. */
struct entry {
    const char *tensor, *file;
};

static int by_file(const void *a, const void *b) {
    return strcmp(((const struct entry *)a)->file, ((const struct entry *)b)->file);
}

static int by_name(const void *a, const void *b) {
    return strcmp(((const struct tensor_view *)a)->name, ((const struct tensor_view *)b)->name);
}

/* A name that cannot leave the folder: no separator of any system, not "." or "..". */
static bool plain_file_name(const char *s) {
    return s[0] && s[0] != '.' && !strchr(s, '/') && !strchr(s, '\\');
}

/* Opens a file and adds it to the shards; NULL after reporting. */
static struct safetensors *open_shard(struct checkpoint *c, const char *path, struct error *error) {
    struct safetensors *s;
    struct error first = {0};
    if (safetensors_open(path, &s, &first) != 0) {
        error_add(error, first.code, "%s", first.text);
        return NULL;
    }
    c->shards = xrealloc(c->shards, (c->num_shards + 1) * sizeof *c->shards);
    c->shards[c->num_shards++] = s;
    c->bytes += safetensors_bytes(s);
    return s;
}

static void open_single(struct checkpoint *c, const char *path, struct error *error) {
    struct safetensors *s = open_shard(c, path, error);
    if (!s)
        return;
    c->num_tensors = safetensors_count(s);
    c->tensors = xmalloc(c->num_tensors * sizeof *c->tensors);
    for (size_t i = 0; i < c->num_tensors; i++)
        c->tensors[i] = *safetensors_at(s, i);
}

/* The weight_map as an array sorted by shard; NULL after reporting. */
static struct entry *read_weight_map(json_t *index, const char *path, size_t *n,
                                     struct error *error) {
    json_t *map = json_object_get(index, "weight_map"), *v;
    const char *tensor;
    struct entry *entries = NULL;
    *n = 0;
    if (json_object_size(map) == 0) {
        error_add(error, ERR_BAD_FILE, "%s: weight_map: expected an object with tensors", path);
        return NULL;
    }
    entries = xmalloc(json_object_size(map) * sizeof *entries);
    json_object_foreach(map, tensor, v) {
        if (!json_is_string(v)) {
            error_add(error, ERR_BAD_FILE, "%s: weight_map: %s: expected a file name", path,
                      tensor);
            free(entries);
            return NULL;
        }
        entries[(*n)++] = (struct entry){tensor, json_string_value(v)};
    }
    qsort(entries, *n, sizeof *entries, by_file);
    return entries;
}

/* Opens the shard of entries[0..n) (all the same file) and takes the listed tensors from it. */
static void open_listed(struct checkpoint *c, const char *dir, const char *index_path,
                        const struct entry *entries, size_t n, struct error *error) {
    const char *file = entries[0].file;
    if (!plain_file_name(file)) {
        error_add(error, ERR_BAD_FILE, "%s: shard \"%s\" is not a plain file name", index_path,
                  file);
        return;
    }
    char *path = path_join(dir, file);
    struct safetensors *s = open_shard(c, path, error);
    for (size_t i = 0; s && i < n; i++) {
        const struct tensor_view *t = safetensors_find(s, entries[i].tensor);
        if (t)
            c->tensors[c->num_tensors++] = *t;
        else
            error_add(error, ERR_BAD_FILE, "%s: tensor %s is missing, though %s lists it here",
                      path, entries[i].tensor, index_path);
    }
    free(path);
}

static void open_sharded(struct checkpoint *c, const char *dir, const char *index_path,
                         struct error *error) {
    size_t n, shards = 0;
    json_t *index = json_parse_file(index_path, INDEX_MAX_BYTES, error);
    struct entry *entries = index ? read_weight_map(index, index_path, &n, error) : NULL;
    if (!entries)
        goto out;
    c->tensors = xmalloc(n * sizeof *c->tensors);
    for (size_t i = 0, end; i < n; i = end) {
        for (end = i + 1; end < n && by_file(&entries[i], &entries[end]) == 0;)
            end++;
        if (++shards > MAX_SHARDS) {
            error_add(error, ERR_UNSUPPORTED, "%s: more than %d shards", index_path, MAX_SHARDS);
            goto out;
        }
        open_listed(c, dir, index_path, entries + i, end - i, error);
    }
    qsort(c->tensors, c->num_tensors, sizeof *c->tensors, by_name);
out:
    free(entries);
    json_decref(index);
}

/* Says why a folder has nothing to read. */
static void report_none(const char *dir, struct error *error) {
    char *bin = path_join(dir, "pytorch_model.bin");
    char *bin_index = path_join(dir, "pytorch_model.bin.index.json");
    if (file_exists(bin) || file_exists(bin_index))
        error_add(error, ERR_UNSUPPORTED,
                  "%s: only PyTorch .bin files; convert them to safetensors first", dir);
    else
        error_add(error, ERR_NOT_FOUND,
                  "%s: neither model.safetensors nor model.safetensors.index.json", dir);
    free(bin);
    free(bin_index);
}

int checkpoint_open(const char *model_dir, struct checkpoint **out, struct error *error) {
    struct error own = {0}; /* counts problems also where the caller does not ask */
    struct checkpoint *c = xcalloc(1, sizeof *c);
    char *single = path_join(model_dir, "model.safetensors");
    char *index = path_join(model_dir, "model.safetensors.index.json");
    if (file_exists(single))
        open_single(c, single, &own);
    else if (file_exists(index))
        open_sharded(c, model_dir, index, &own);
    else
        report_none(model_dir, &own);
    free(single);
    free(index);
    if (own.code) {
        checkpoint_close(c);
        c = NULL;
        error_add(error, own.code, "%s", own.text);
        if (error)
            error->problems += own.problems - 1;
    }
    *out = c;
    return own.code;
}

void checkpoint_close(struct checkpoint *c) {
    if (!c)
        return;
    for (size_t i = 0; i < c->num_shards; i++)
        safetensors_close(c->shards[i]);
    free(c->shards);
    free(c->tensors);
    free(c);
}

const struct tensor_view *checkpoint_find(const struct checkpoint *c, const char *name) {
    struct tensor_view key = {.name = name};
    if (c->num_tensors == 0)
        return NULL;
    return bsearch(&key, c->tensors, c->num_tensors, sizeof key, by_name);
}

const struct tensor_view *checkpoint_at(const struct checkpoint *c, size_t i) {
    CHECK(i < c->num_tensors, "tensor %zu of %zu", i, c->num_tensors);
    return &c->tensors[i];
}

size_t checkpoint_num_tensors(const struct checkpoint *c) {
    return c->num_tensors;
}

size_t checkpoint_bytes(const struct checkpoint *c) {
    return c->bytes;
}
