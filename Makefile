# moeserve: make [target]; `make help` lists the targets.
#
#   BUILD=dir       object tree and binaries (default build)
#   SAN=asan|tsan   sanitizer build, in build/asan or build/tsan
#   CUDA=0          leave the CUDA backend out even where nvcc is installed

CC     ?= gcc
CXX    ?= g++
SAN    ?=
CUDA   ?= 1
PREFIX ?= /usr/local
BUILD  ?= build$(if $(SAN),/$(SAN))
VERSION := 0.1.0

PKGS := libuv jansson libpcre2-8 sentencepiece inih
ifneq ($(filter-out clean help format check-format,$(or $(MAKECMDGOALS),all)),)
ifneq ($(shell pkg-config --exists $(PKGS) && echo yes),yes)
$(error libraries are missing ($(PKGS)): run scripts/deps.sh)
endif
endif

WARN     := -Wall -Wextra -Wshadow -Wvla -Walloca $(if $(CI),-Werror)
CPPFLAGS += -I. -D_GNU_SOURCE -DMOESERVE_VERSION='"$(VERSION)"' \
            -DMOESERVE_DEMO_MODEL='"$(abspath configs/demo-moe)"' $(shell pkg-config --cflags $(PKGS))
CFLAGS   ?= -O2 -g
CXXFLAGS ?= -O2 -g
# No contraction and no fast-math: results must not depend on what the compiler finds to fuse.
COMMON   := $(WARN) -pthread -fno-omit-frame-pointer -ffp-contract=off -MMD -MP
LDLIBS   += $(shell pkg-config --libs $(PKGS)) -lm -pthread
ifeq ($(SAN),asan)
COMMON  += -fsanitize=address,undefined -fno-sanitize-recover=undefined
LDFLAGS += -fsanitize=address,undefined
endif
ifeq ($(SAN),tsan)
COMMON  += -fsanitize=thread
LDFLAGS += -fsanitize=thread
endif
ALL_CFLAGS   = $(CPPFLAGS) -std=c11 $(COMMON) -Wstrict-prototypes $(CFLAGS)
ALL_CXXFLAGS = $(CPPFLAGS) -std=c++17 $(COMMON) $(CXXFLAGS)

SRC      := $(wildcard host/*.c host/cpu/*.c net/*.c)
SRC_CXX  := $(wildcard host/*.cc)
TEST_SRC := $(wildcard tests/*.c)
OBJ      := $(SRC:%.c=$(BUILD)/%.o) $(SRC_CXX:%.cc=$(BUILD)/%.o)
LIB_OBJ  := $(filter-out $(BUILD)/host/main.o,$(OBJ))
TEST_OBJ := $(TEST_SRC:%.c=$(BUILD)/%.o) $(BUILD)/tests/shim.o
FUZZ     := $(patsubst tests/fuzz/%.c,build/fuzz/%,$(wildcard tests/fuzz/fuzz_*.c))

all: $(BUILD)/moeserve

$(BUILD)/moeserve: $(OBJ)
	$(CXX) $(LDFLAGS) -o $@ $^ $(LDLIBS)

$(BUILD)/moeserve_tests: $(TEST_OBJ) $(LIB_OBJ)
	$(CXX) $(LDFLAGS) -o $@ $^ -lgtest $(LDLIBS)

# SIMD kernels: each file is built for its own instruction set and chosen at run time.
$(BUILD)/host/cpu/kernels_avx2.o: CFLAGS += -O3 -mavx2 -mfma -mf16c
$(BUILD)/host/cpu/kernels_avx512.o: CFLAGS += -O3 -mavx512f -mavx512bw -mavx512vl -mavx512dq -mfma -mf16c
$(BUILD)/host/cpu/kernels_avx512bf16.o: CFLAGS += -O3 -mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx512bf16 -mfma -mf16c

$(BUILD)/%.o: %.c
	@mkdir -p $(@D)
	$(CC) $(ALL_CFLAGS) -c -o $@ $<

$(BUILD)/%.o: %.cc
	@mkdir -p $(@D)
	$(CXX) $(ALL_CXXFLAGS) -c -o $@ $<

help:           ## lists the targets
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' Makefile

.PHONY: all help
-include $(OBJ:.o=.d) $(TEST_OBJ:.o=.d)
