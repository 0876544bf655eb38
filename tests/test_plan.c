/* moeserve plan as a user runs it: config.json in, figures and an exit status out. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "tests/program.h"
#include "tests/shim.h"

static const char skywork[] =
    "{\"model_type\":\"skywork_moe\",\"hidden_size\":4608,\"num_hidden_layers\":52,"
    "\"num_attention_heads\":36,\"num_key_value_heads\":36,\"intermediate_size\":12288,"
    "\"num_experts\":[16],\"vocab_size\":65532,\"max_position_embeddings\":8192,"
    "\"hidden_act\":\"silu\",\"torch_dtype\":\"bfloat16\","
    "\"quantization_config\":{\"quant_method\":\"fp8\",\"activation_scheme\":\"dynamic\"}}";

/* A folder with nothing but this config.json. */
static const char *model_folder(void) {
    static char folder[256];
    char path[300];
    snprintf(folder, sizeof folder, "%s/plan-skywork", shim_scratch_dir());
    mkdir(folder, 0777);
    snprintf(path, sizeof path, "%s/config.json", folder);
    FILE *file = fopen(path, "w");
    fputs(skywork, file);
    fclose(file);
    return folder;
}

/* Runs it with up to 12 arguments, separated by spaces, for the model above; all it prints goes to
 * text, its status comes back. */
static int plan(const char *line, char *text, size_t size) {
    char words[256], *save = NULL;
    const char *args[16] = {"plan", "--model", model_folder()};
    int n = 3;
    size_t len = 0;
    ssize_t got;
    struct program p;
    snprintf(words, sizeof words, "%s", line);
    for (char *w = strtok_r(words, " ", &save); w && n < 15; w = strtok_r(NULL, " ", &save))
        args[n++] = w;
    text[0] = '\0';
    if (!program_start(&p, args))
        return -1;
    while (len + 1 < size && (got = read(p.out, text + len, size - 1 - len)) > 0)
        len += (size_t)got;
    text[len] = '\0';
    return program_wait(&p);
}

static void expect_line(const char *text, const char *line) {
    if (!strstr(text, line))
        FAIL("expected '%s' in:\n%s", line, text);
}

/* The number after `label`. */
static double number_after(const char *text, const char *label) {
    const char *at = strstr(text, label);
    return at ? strtod(at + strlen(label), NULL) : -1;
}

TEST(Plan, SkyworkOnEightCardsFits) {
    NEEDS_BINARY();
    static char text[16384];
    ASSERT_INT_EQ(plan("--gpus 8 --gpu-memory 24564M --gpu-memory-utilization 0.95 "
                       "--kv-cache-dtype fp8 --layout",
                       text, sizeof text),
                  0);
    expect_line(text, "  parameters  146.36 B, 22.69 B active\n");
    expect_line(text, "  KV cache    479232 bytes a token (F8_E4M3)\n");
    expect_line(text, "  ranks       8, every expert cut by columns\n");
    expect_line(text, "at 66560 bytes a token");
    expect_line(text, "\n  fits        yes\n");
    expect_line(text, "  20..23  0..15    6144..7679");
    EXPECT_NEAR(number_after(text, "  KV room     "), 74000, 1500);
    EXPECT_NEAR(number_after(text, "  rank 0      weights "), 18.31, 0.03);
    /* The embedding's 604 MB on the host make room for 9,000 tokens. */
    double device = number_after(text, "  KV room     ");
    ASSERT_INT_EQ(plan("--gpus 8 --gpu-memory 24564M --gpu-memory-utilization 0.95 "
                       "--kv-cache-dtype fp8 --embedding host",
                       text, sizeof text),
                  0);
    EXPECT_NEAR(number_after(text, "  KV room     ") - device, 604e6 / 66560, 100);
    EXPECT_TRUE(strstr(text, "20..23") == NULL);
}

TEST(Plan, TheStatusSaysWhetherItFits) {
    NEEDS_BINARY();
    static char text[16384];
    EXPECT_INT_EQ(plan("--gpus 6 --gpu-memory 24G --layout", text, sizeof text), 1);
    expect_line(text, "  fits        no\n");
    expect_line(text, "0..5    0..15    0..2047");
    EXPECT_INT_EQ(plan("--gpus 6", text, sizeof text), 0);
    expect_line(text, "  fits        not known without --gpu-memory\n");
    EXPECT_INT_EQ(
        plan("--gpu-memory 24G,24G,12G,8G,48G,48G,24G --max-model-len 4096", text, sizeof text), 0);
    expect_line(text, "  ranks       7,");
    /* 8 cards of 21 GB hold some KV, but not of a context of the model's whole length. */
    EXPECT_INT_EQ(plan("--gpus 8 --gpu-memory 21G", text, sizeof text), 0);
    expect_line(text, ": less than one sequence of 8192\n");
    EXPECT_INT_EQ(plan("--gpus 8 --gpu-memory 21G --max-model-len 8192", text, sizeof text), 1);
    EXPECT_INT_EQ(plan("--gpus 8 --gpu-memory 40G --enable-expert-parallel", text, sizeof text), 0);
    expect_line(text, "  ranks       8, whole experts\n");
    EXPECT_INT_EQ(plan("--ranks 8 --gpu-memory 40G --expert-parallel-size 2", text, sizeof text),
                  0);
    expect_line(text, "  ranks       8, experts in 2 groups, cut 4 times in each\n");
}

TEST(Plan, BadUsageIsTwo) {
    NEEDS_BINARY();
    static const char *const lines[] = {
        "--gpus 4 --gpu-memory 24G,24G",
        "--gpu-memory 24Q",
        "--gpu-memory 24G,",
        "--gpu-memory 1K",
        "--gpu-memory -5G",
        "--gpus 4 --ep 3",
        "--max-model-len 8193",
        "--ranks 17",
        "--kv-cache-dtype q4",
        "--prompt x",
        "--max-num-seqs 100000",
    };
    static char text[16384];
    for (size_t i = 0; i < sizeof lines / sizeof *lines; i++) {
        if (!EXPECT_INT_EQ(plan(lines[i], text, sizeof text), 2))
            FAIL("%s: %s", lines[i], text);
        EXPECT_STR_EQ(text, "");
    }
    EXPECT_INT_EQ(plan("--ranks 16 --gpu-memory 24G", text, sizeof text), 0);
    char first[256];
    static const char *const nowhere[] = {"plan", "--model", "/no/such/model", NULL};
    EXPECT_INT_EQ(program_run(nowhere, first, sizeof first), 1);
    static const char *const help[] = {"plan", "--help", NULL};
    EXPECT_INT_EQ(program_run(help, first, sizeof first), 0);
    EXPECT_STR_EQ(first, "usage: moeserve plan --model DIR [OPTION ...]");
}
