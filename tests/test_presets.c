/* The presets in configs/: each is understood, and the model that it names fits on its cards. */
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "host/options.h"
#include "tests/program.h"
#include "tests/shim.h"

/* What CUDA reports of a card of 24 GB. */
#define CARD "23.6G"

enum format { BF16, FP8, FP8_BLOCKS };

/* The model of a preset, as its config.json says it. experts: what else is said of them. */
static const struct preset {
    const char *name, *model_type;
    int32_t hidden, layers, heads, kv_heads, intermediate, vocab, max_positions;
    const char *experts;
    enum format format;
    double least_tokens; /* of KV cache that have to fit */
} presets[] = {
    {"deepseek-67b-8x4090", "llama", 8192, 95, 64, 8, 22016, 102400, 4096, "", BF16, 250e3},
    {"llama2-70b-4x4090", "llama", 8192, 80, 64, 8, 28672, 32000, 4096, "", FP8, 140e3},
    {"llama3-70b-8x4090", "llama", 8192, 80, 64, 8, 28672, 128256, 8192, "", BF16, 280e3},
    {"mixtral-8x22b-8x4090", "mixtral", 6144, 56, 48, 8, 16384, 32768, 65536,
     "\"num_local_experts\":8,", FP8, 390e3},
    {"mixtral-8x7b-3x4090", "mixtral", 4096, 32, 32, 8, 14336, 32000, 32768,
     "\"num_local_experts\":8,", FP8, 340e3},
    {"olmoe-1b-7b-1x4090", "olmoe", 2048, 16, 16, 16, 1024, 50304, 4096,
     "\"num_experts\":64,\"num_experts_per_tok\":8,", BF16, 60e3},
    {"qwen1.5-72b-8x4090", "qwen2", 8192, 80, 64, 64, 24576, 152064, 32768, "", BF16, 32e3},
    {"qwen3-30b-a3b-2x4090", "qwen3_moe", 2048, 48, 32, 4, 6144, 151936, 40960,
     "\"num_experts\":128,\"num_experts_per_tok\":8,\"moe_intermediate_size\":768,"
     "\"head_dim\":128,",
     FP8_BLOCKS, 290e3},
    {"skywork-13b-2x4090", "skywork", 4608, 52, 36, 36, 12288, 65519, 4096, "", BF16, 37e3},
    {"skywork-moe-8x4090", "skywork_moe", 4608, 52, 36, 36, 12288, 65532, 8192,
     "\"num_experts\":[16],", FP8, 75e3},
};
enum { NUM_PRESETS = sizeof presets / sizeof *presets };

static void preset_path(const struct preset *p, char *path, size_t size) {
    snprintf(path, size, "configs/%s.ini", p->name);
}

/* The number before "x4090". */
static int32_t cards_of(const struct preset *p) {
    return atoi(strrchr(p->name, '-') + 1);
}

static void write_config(const struct preset *p, const char *folder) {
    static const char *const formats[] = {
        [BF16] = "",
        [FP8] = ",\"quantization_config\":{\"quant_method\":\"fp8\","
                "\"activation_scheme\":\"dynamic\"}",
        [FP8_BLOCKS] = ",\"quantization_config\":{\"quant_method\":\"fp8\","
                       "\"activation_scheme\":\"dynamic\",\"weight_block_size\":[128,128]}",
    };
    char path[400];
    mkdir(folder, 0777);
    snprintf(path, sizeof path, "%s/config.json", folder);
    FILE *file = fopen(path, "w");
    fprintf(file,
            "{\"model_type\":\"%s\",\"hidden_size\":%d,\"num_hidden_layers\":%d,"
            "\"num_attention_heads\":%d,\"num_key_value_heads\":%d,\"intermediate_size\":%d,"
            "\"vocab_size\":%d,\"max_position_embeddings\":%d,%s\"hidden_act\":\"silu\","
            "\"torch_dtype\":\"bfloat16\"%s}",
            p->model_type, p->hidden, p->layers, p->heads, p->kv_heads, p->intermediate, p->vocab,
            p->max_positions, p->experts, formats[p->format]);
    fclose(file);
}

/* moeserve plan with the preset; its status, and the tokens of KV cache that fit. */
static int plan(const struct preset *p, double *tokens) {
    char folder[300], path[300], text[16384];
    const char *args[] = {"plan", "--model", folder, "--config", path, "--gpu-memory", CARD, NULL};
    struct program program;
    size_t len = 0;
    ssize_t got;
    snprintf(folder, sizeof folder, "%s/%s", shim_scratch_dir(), p->name);
    preset_path(p, path, sizeof path);
    write_config(p, folder);
    if (!program_start(&program, args))
        return -1;
    while (len + 1 < sizeof text &&
           (got = read(program.out, text + len, sizeof text - 1 - len)) > 0)
        len += (size_t)got;
    text[len] = '\0';
    const char *room = strstr(text, "  KV room     ");
    *tokens = room ? atof(room + strlen("  KV room     ")) : 0;
    return program_wait(&program);
}

TEST(Presets, EveryFileIsUnderstood) {
    for (int i = 0; i < NUM_PRESETS; i++) {
        struct options o;
        struct error e = {0};
        char path[300];
        preset_path(&presets[i], path, sizeof path);
        char *argv[] = {"serve", "--config", path};
        options_init(&o);
        if (EXPECT_INT_EQ(options_parse(&o, CMD_SERVE, 3, argv, &e), 0)) {
            EXPECT_INT_EQ(o.engine.num_gpus, cards_of(&presets[i]));
            EXPECT_TRUE(o.engine.model == NULL);
        } else {
            FAIL("%s", e.text);
        }
        options_deinit(&o);
    }
}

TEST(Presets, EveryFileIsTested) {
    DIR *dir = opendir("configs");
    const struct dirent *entry;
    int files = 0;
    ASSERT_TRUE(dir != NULL);
    while ((entry = readdir(dir))) {
        const char *dot = strrchr(entry->d_name, '.');
        files += dot && !strcmp(dot, ".ini");
    }
    closedir(dir);
    EXPECT_INT_EQ(files, NUM_PRESETS);
}

TEST(Presets, EveryModelFitsOnItsCards) {
    NEEDS_BINARY();
    for (int i = 0; i < NUM_PRESETS; i++) {
        double tokens = 0;
        if (plan(&presets[i], &tokens) != 0 || tokens < presets[i].least_tokens)
            FAIL("%s: room for %.0f tokens of KV cache, not %.0f", presets[i].name, tokens,
                 presets[i].least_tokens);
    }
}
