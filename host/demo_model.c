#include "demo_model.h"

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "host/file.h"
#include "host/mem.h"

/* The folder of the running program; false when the system does not say. */
static bool program_dir(char *out, size_t size) {
    ssize_t n = readlink("/proc/self/exe", out, size - 1);
    if (n <= 0)
        return false;
    out[n] = '\0';
    char *slash = strrchr(out, '/');
    if (slash)
        *slash = '\0';
    return slash != NULL;
}

/* dir when it holds a model, else NULL. Takes dir over. */
static char *if_model(char *dir) {
    char *config = path_join(dir, "config.json");
    bool found = file_exists(config);
    free(config);
    if (found)
        return dir;
    free(dir);
    return NULL;
}

char *demo_model_find(void) {
    static const char *const beside[] = {"../share/moeserve/demo-moe", "../configs/demo-moe"};
    char dir[4096];
    char *found = NULL;
    for (int i = 0; i < 2 && !found && program_dir(dir, sizeof dir); i++)
        found = if_model(path_join(dir, beside[i]));
    return found ? found : if_model(xstrdup(MOESERVE_DEMO_MODEL));
}
