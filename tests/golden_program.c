/* Golden models for the program (golden_program.h). */
#include "tests/golden_program.h"

#include <errno.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include "host/error.h"
#include "tests/shim.h"

/* One token a byte. */
static void write_tokenizer(const char *path) {
    FILE *f = fopen(path, "w");
    CHECK(f, "%s", path);
    fputs(
        "{\"version\":\"1.0\",\"added_tokens\":[],\"normalizer\":null,\"post_processor\":null,"
        "\"pre_tokenizer\":{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"use_regex\":false},"
        "\"decoder\":{\"type\":\"ByteLevel\"},\"model\":{\"type\":\"BPE\",\"merges\":[],\"vocab\":{",
        f);
    for (int b = 0, moved = 256; b < 256; b++) { /* GPT-2's characters for bytes */
        bool printable = (b > 32 && b < 127) || (b > 160 && b != 173);
        fprintf(f, "%s\"\\u%04x\":%d", b > 0 ? "," : "", printable ? b : moved++, b);
    }
    fputs("}}}", f);
    fclose(f);
}

void golden_program_dir(const char *name, char *dir, size_t size) {
    static const char *const files[] = {"config.json",
                                        "model.safetensors",
                                        "model.safetensors.index.json",
                                        "model-00001-of-00003.safetensors",
                                        "model-00002-of-00003.safetensors",
                                        "model-00003-of-00003.safetensors"};
    char from[1024], to[512], here[256];
    snprintf(dir, size, "%s/%s", shim_scratch_dir(), name);
    CHECK(getcwd(here, sizeof here), "getcwd");
    mkdir(dir, 0700);
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        snprintf(from, sizeof from, "%s/%s/golden/%s/%s", here, shim_data_dir(), name, files[i]);
        snprintf(to, sizeof to, "%s/%s", dir, files[i]);
        if (access(from, R_OK) == 0 && symlink(from, to) != 0 && errno != EEXIST)
            FAIL("symlink %s", to);
    }
    snprintf(to, sizeof to, "%s/tokenizer.json", dir);
    write_tokenizer(to);
}
