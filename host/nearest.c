#include "nearest.h"

#include <string.h>

enum { MAX_NAME = 63, FAR = MAX_NAME + 1 };

static int min3(int a, int b, int c) {
    int m = a < b ? a : b;
    return m < c ? m : c;
}

/* Damerau-Levenshtein (optimal string alignment) over three rows: two before, before, current. */
int edit_distance(const char *a, const char *b) {
    size_t n = strnlen(a, FAR), m = strnlen(b, FAR);
    int rows[3][MAX_NAME + 1];
    if (n > MAX_NAME || m > MAX_NAME)
        return FAR;
    for (size_t j = 0; j <= m; j++)
        rows[0][j] = (int)j;
    for (size_t i = 1; i <= n; i++) {
        int *cur = rows[i % 3], *prev = rows[(i - 1) % 3], *prev2 = rows[(i + 1) % 3];
        cur[0] = (int)i;
        for (size_t j = 1; j <= m; j++) {
            int same = a[i - 1] == b[j - 1] ? 0 : 1;
            cur[j] = min3(prev[j] + 1, cur[j - 1] + 1, prev[j - 1] + same);
            if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] &&
                prev2[j - 2] + 1 < cur[j])
                cur[j] = prev2[j - 2] + 1;
        }
    }
    return rows[n % 3][m];
}

const char *nearest_name(const char *const *names, size_t count, const char *given) {
    const char *best = NULL;
    int best_distance = FAR;
    for (size_t i = 0; i < count; i++) {
        int d = edit_distance(names[i], given);
        if (d < best_distance) {
            best_distance = d;
            best = names[i];
        }
    }
    if (!best)
        return NULL;
    int allowed = (int)strlen(best) / 3;
    return best_distance <= (allowed > 1 ? allowed : 1) ? best : NULL;
}
