/* Ranks of the CPU that are killed, stalled or poisoned (faulty.h). */
#include "tests/faulty.h"
#include "tests/shim.h"

static const char *const args[] = {"--ranks", "3", "--threads", "3", NULL};
static const struct faulty cpu = {
    .args = args, .ranks = 3, .layers = 4, .tokens = 40, .timeout = "0.5"};

TEST(Faults, ARankThatIsKilledIsStartedAnewAndNobodyNotices) {
    NEEDS_BINARY();
    faulty_check_kills(&cpu, 20);
}

TEST(Faults, ARankThatStallsEndsTheServerAfterAnAnswerToEveryone) {
    NEEDS_BINARY();
    /* The deadline twice (who waits for the rank, and who waits for its thread), and what the steps
     * before took. */
    faulty_check_stalls(&cpu, 20, 6000000);
}

TEST(Faults, ARankThatReturnsNansFailsTheRequestsOfTheStepAndNoOthers) {
    NEEDS_BINARY();
    faulty_check_nans(&cpu, 20);
}

TEST(Faults, TheServerIsUnhealthyWhileARankIsStalled) {
    NEEDS_BINARY();
    faulty_check_health(&cpu);
}

TEST(Faults, AFaultThatIsNoneIsRefused) {
    NEEDS_BINARY();
    static const char *const bad[] = {"",          "stall",      "stall@",     "fall@1:2",
                                      "stall@1:0", "stall@-1:3", "stall@1:2:", "stall@1:2:3x"};
    char line[256];
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        const char *const wrong[] = {"generate", "-p", "1", "--fault", bad[i], NULL};
        if (!EXPECT_INT_EQ(program_run(wrong, line, sizeof line), 2))
            FAIL("%s", bad[i]);
    }
}
