/* Errors: one message, or a list of problems that ends with how many did not fit. */
#include <stdio.h>
#include <string.h>

#include "host/error.h"
#include "tests/shim.h"

TEST(Error, ProblemsThatDoNotFitAreCounted) {
    struct error e = {0};
    enum { PROBLEMS = 500 };
    for (int i = 0; i < PROBLEMS; i++)
        EXPECT_INT_EQ(error_add(&e, i ? ERR_IO : ERR_BAD_FILE, "problem number %d", i),
                      ERR_BAD_FILE);
    EXPECT_INT_EQ(e.problems, PROBLEMS);
    int lines = 0, more = 0;
    char *save = NULL;
    for (char *line = strtok_r(e.text, "\n", &save); line; line = strtok_r(NULL, "\n", &save)) {
        char expected[40];
        snprintf(expected, sizeof expected, "problem number %d", lines);
        if (sscanf(line, "... and %d more problems", &more) == 1)
            EXPECT_TRUE(strtok_r(NULL, "\n", &save) == NULL);
        else
            EXPECT_STR_EQ(line, expected); /* whole ones */
        lines++;
    }
    EXPECT_INT_EQ(lines - 1 + more, PROBLEMS);
    EXPECT_INT_GT(lines, 200);
}

TEST(Error, OneProblemIsCutAtTheEndOfTheText) {
    struct error e = {0};
    char text[6000];
    memset(text, 'x', sizeof text);
    text[sizeof text - 1] = '\0';
    error_add(&e, ERR_IO, "%s", text);
    EXPECT_INT_EQ(strlen(e.text), sizeof e.text - 1);
    error_add(&e, ERR_IO, "another");
    EXPECT_INT_EQ(e.problems, 2);
    error_set(&e, ERR_CONFIG, "only this");
    EXPECT_STR_EQ(e.text, "only this");
    error_add(&e, ERR_IO, "and that");
    EXPECT_STR_EQ(e.text, "only this\nand that");
}
