# moeserve: make [target]; `make help` lists the targets.
#
#   BUILD=dir       object tree and binaries (default build)
#   SAN=asan|tsan   sanitizer build, in build/asan or build/tsan
#   V=1             show whole commands
#   CUDA=0          without the CUDA backend (the default where there is no nvcc, and with SAN)
#   ARCHS="89"      architectures of its kernels (default: all that are supported)
#   MPI=0           without MPI (the default where there is no OpenMPI, and with SAN or BARE)
#   BARE=1          gpu_tests and the benchmarks without a library but CUDA's and libc: no tokenizers,
#                   no engine, no server; tests/bare reads JSON, tests/shim_plain.c runs the tests

CC     ?= gcc
CXX    ?= g++
SAN    ?=
CUDA   ?= $(if $(SAN),0,1)
PREFIX ?= /usr/local
BARE   ?= 0
BUILD  ?= build$(if $(SAN),/$(SAN))
VERSION := 0.1.0

ifeq ($(BARE),0)
PKGS := libuv jansson libpcre2-8 libutf8proc sentencepiece libssl libcrypto
ifneq ($(filter-out clean help format check-format,$(or $(MAKECMDGOALS),all)),)
# http_parser comes without a file for pkg-config.
ifneq ($(shell pkg-config --exists $(PKGS) && \
         $(CC) $(CPPFLAGS) -fsyntax-only -include http_parser.h -x c /dev/null 2>/dev/null && echo yes),yes)
$(error libraries are missing ($(PKGS) http_parser): run scripts/deps.sh)
endif
endif
endif

WARN     := -Wall -Wextra -Wshadow -Wvla -Walloca $(if $(CI),-Werror)
CPPFLAGS += -I. -D_GNU_SOURCE -DMOESERVE_VERSION='"$(VERSION)"' \
            -DMOESERVE_DEMO_MODEL='"$(abspath configs/demo-moe)"' $(if $(PKGS),$(shell pkg-config --cflags $(PKGS)),-Itests/bare)
CFLAGS   ?= -O2 -g
CXXFLAGS ?= -O2 -g
# No contraction and no fast-math: results must not depend on what the compiler finds to fuse.
COMMON   := $(WARN) -pthread -fno-omit-frame-pointer -ffp-contract=off -MMD -MP
LDLIBS   += $(if $(PKGS),$(shell pkg-config --libs $(PKGS))) -lm -pthread $(if $(PKGS),-lhttp_parser)
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
MPI      ?= $(if $(or $(SAN),$(filter-out 0,$(BARE))),0,$(if $(shell pkg-config --exists ompi-c && echo yes),1,0))
ifneq ($(MPI),0)
SRC      := $(filter-out host/group_mpi_none.c,$(SRC))
CPPFLAGS += $(shell pkg-config --cflags-only-I ompi-c | sed 's/-I/-isystem /g')
LDLIBS   += $(shell pkg-config --libs ompi-c)
else
SRC      := $(filter-out host/group_mpi.c,$(SRC))
endif
SHIM     := shim
GTEST    := -lgtest
TEST_SRC := $(filter-out tests/bench_% tests/gpu_% tests/test_cuda_% tests/shim_%,$(wildcard tests/*.c))
ifneq ($(BARE),0)
SRC      := $(filter-out host/main.c host/options% host/cmd_% host/dispatch.c host/engine% host/grammar% host/tokenizer% host/chat_% host/tool_% net/%,$(SRC)) tests/bare/json.c
SRC_CXX  :=
SHIM     := shim_plain
GTEST    :=
endif
TEST_OBJ := $(TEST_SRC:%.c=$(BUILD)/%.o) $(BUILD)/tests/$(SHIM).o
FUZZ     := $(patsubst tests/fuzz/%.c,build/fuzz/%,$(wildcard tests/fuzz/fuzz_*.c))
FUZZ_SECONDS ?= 60
FUZZ_FLAGS   := -fsanitize=fuzzer-no-link,address,undefined
FORMATTED     = $(SRC) $(SRC_CXX) $(wildcard host/*.h host/cpu/*.h net/*.h tests/*.[ch] tests/bare/*.h tests/fuzz/*.c tests/preload/*.c tests/*.cc cuda/*.[ch] tests/ptxvm/*.[ch])

# The CUDA backend: kernels by nvcc, with SASS and PTX of each architecture, uncompressed so that the
# PTX can be executed without a GPU too; everything around them in C.
ARCHS     ?= 80 86 89 90 120
NVCC      := $(if $(filter 0,$(CUDA)),,$(shell command -v nvcc))
ifneq ($(NVCC),)
CUDA_HOME ?= $(abspath $(dir $(realpath $(NVCC)))/..)
NVFLAGS    = -std=c++17 -O3 -lineinfo --no-compress -cudart shared -I. -Xcompiler -Wall,-Wextra,-fPIC \
             --Werror all-warnings -Xptxas -v,-warn-spills $(NO_DOUBLES) \
             $(foreach a,$(ARCHS),-gencode arch=compute_$(a),code=[sm_$(a),compute_$(a)])
# (NCCL is opened at run time, where several GPUs are wanted; only its header is needed here.)
HAVE_NCCL := $(wildcard $(CUDA_HOME)/include/nccl.h /usr/include/nccl.h)
# Float64 is slow on these GPUs, so only the kernels of partials in float64 may use it.
NO_DOUBLES = $(if $(filter %_f64.o %/gather.o %/moe.o %/norm.o %/rope.o %/unit_odd.o %/unit_stream.o %/unit_tile.o,$@),,-Xptxas -warn-double-usage)
CPPFLAGS  += -isystem $(CUDA_HOME)/include
LDLIBS    += -L$(CUDA_HOME)/lib64 -Wl,--enable-new-dtags,-rpath,$(CUDA_HOME)/lib64 -lcudart -lcublasLt -ldl
SRC       := $(filter-out host/cuda_none.c,$(SRC)) $(filter-out $(if $(HAVE_NCCL),%_none.c,%/nccl.c),$(wildcard cuda/*.c))
CUDA_OBJ  := $(patsubst %.cu,$(BUILD)/%.o,$(wildcard cuda/*.cu))
endif
OBJ       := $(SRC:%.c=$(BUILD)/%.o) $(SRC_CXX:%.cc=$(BUILD)/%.o) $(CUDA_OBJ)
LIB_OBJ   := $(filter-out $(BUILD)/host/main.o,$(OBJ))

# One line a file; V=1 shows the commands.
Q := $(if $(V),,@)

all: $(BUILD)/moeserve  ## builds the server (the default)
ifeq ($(CUDA),0)
	@echo "moeserve: built the CPU program (CUDA=0)"
else ifeq ($(NVCC),)
	@echo "moeserve: built the CPU program (no nvcc found; install the CUDA Toolkit for GPUs)"
endif

$(BUILD)/moeserve: $(OBJ)
	@echo "  LINK $@"
	$(Q)$(CXX) $(LDFLAGS) -o $@ $^ $(LDLIBS)

$(BUILD)/moeserve_tests: $(TEST_OBJ) $(LIB_OBJ)
	@echo "  LINK $@"
	$(Q)$(CXX) $(LDFLAGS) -o $@ $^ -lgtest $(LDLIBS)

# For LD_PRELOAD, in tests of what happens when memory runs out.
ifeq ($(SAN),)
$(BUILD)/moeserve_tests: | $(BUILD)/alloc_fault.so
endif
$(BUILD)/alloc_fault.so: tests/preload/alloc_fault.c
	@echo "  LINK $@"
	$(Q)$(CC) -std=c11 $(WARN) -O2 -g -fPIC -shared -o $@ $<

BENCH_OBJ := $(patsubst %,$(BUILD)/tests/%.o,bench_machine $(if $(CUDA_OBJ),bench_machine_cuda bench_kernels,bench_machine_none))
$(BUILD)/bench_%: $(BUILD)/tests/bench_%.o $(BENCH_OBJ) $(LIB_OBJ)
	@echo "  LINK $@"
	$(Q)$(CXX) $(LDFLAGS) -o $@ $^ $(LDLIBS) $(if $(CUDA_OBJ),-lcublas)

BENCH_CUDA_OBJ := $(patsubst %.c,$(BUILD)/%.o,$(wildcard tests/bench_cuda*.c)) \
                  $(patsubst %,$(BUILD)/tests/%.o,bench_gpu bench_ceilings bench_kernels bench_machine cuda_allreduce_group)
$(BUILD)/bench_cuda: $(BENCH_CUDA_OBJ) $(LIB_OBJ)
	@echo "  LINK $@"
	$(Q)$(CXX) $(LDFLAGS) -o $@ $^ $(LDLIBS)

# SIMD kernels: each file is built for its own instruction set and chosen at run time.
$(BUILD)/host/cpu/kernels_avx2.o: CFLAGS += -O3 -mavx2 -mfma -mf16c
# (The AVX-512 ones without sanitizers, which take minutes to compile them: AVX2 is the same source.)
$(BUILD)/host/cpu/kernels_avx512.o: CFLAGS += -O3 -fno-sanitize=all -mavx512f -mavx512bw -mavx512vl -mavx512dq -mfma -mf16c
$(BUILD)/host/cpu/kernels_avx512bf16.o: CFLAGS += -O3 -fno-sanitize=all -mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx512bf16 -mfma -mf16c

# The page's files are in the object.
$(BUILD)/net/page.o: $(wildcard net/page/*)

# The AVX-512 kernels once more for the tests, through SIMDe, so that they run on any machine.
# Not in sanitizer builds, where compiling them takes longer than everything else together.
SIMDE_OBJ := $(if $(SAN),,$(if $(wildcard /usr/include/simde/x86/avx512.h),$(patsubst %,$(BUILD)/tests/simde_%.o,kernels_avx512 kernels_avx512bf16)))
$(BUILD)/tests/simde_%.o: host/cpu/%.c
	@mkdir -p $(@D)
	@echo "  CC   $@"
	$(Q)$(CC) $(ALL_CFLAGS) -DMOESERVE_SIMDE -Wno-psabi -mavx2 -mfma -mf16c -c -o $@ $<
$(BUILD)/moeserve_tests: $(SIMDE_OBJ)

$(BUILD)/%.o: %.c
	@mkdir -p $(@D)
	@echo "  CC   $@"
	$(Q)$(CC) $(ALL_CFLAGS) -c -o $@ $<

$(BUILD)/%.o: %.cc
	@mkdir -p $(@D)
	@echo "  CXX  $@"
	$(Q)$(CXX) $(ALL_CXXFLAGS) -c -o $@ $<

$(BUILD)/%.o: %.cu $(wildcard cuda/*.h cuda/*.cuh)
	@mkdir -p $(@D)
	@echo "  NVCC $@"
	$(Q)$(NVCC) $(NVFLAGS) -c -o $@ $< 2>$(@:.o=.ptxas); rc=$$?; \
	  grep -v 'ptxas info\|bytes stack frame' $(@:.o=.ptxas) >&2; exit $$rc

# Stand-ins for the CUDA libraries that execute the shipped PTX on a CPU (tests/ptxvm/README.md): tests
# put them first with LD_LIBRARY_PATH.
VM        := $(BUILD)/ptxvm
VM_TEST   := $(wildcard tests/ptxvm/test_*.c tests/ptxvm/*_fixture.c)
VM_OBJ    := $(patsubst %.c,$(BUILD)/%.o,$(filter-out $(VM_TEST),$(wildcard tests/ptxvm/*.c)))
VM_BLAS   := $(patsubst %,$(BUILD)/tests/ptxvm/%.o,cublas gemm rt_alloc)
VM_LT     := $(patsubst %,$(BUILD)/tests/ptxvm/%.o,cublaslt gemm rt_alloc)
VM_NCCL   := $(patsubst %,$(BUILD)/tests/ptxvm/%.o,nccl nccl_group nccl_meet nccl_reduce rt_alloc)
VM_RT     := $(filter-out %/cublas.o %/gemm.o %/cublaslt.o $(filter-out %/rt_alloc.o,$(VM_NCCL)),$(VM_OBJ))
VM_CORE   := $(filter-out $(BUILD)/tests/ptxvm/rt_%,$(VM_RT)) $(BUILD)/tests/ptxvm/rt_alloc.o
VM_LIBS   := $(VM)/libcudart.so.13 $(VM)/libcublas.so.13 $(VM)/libcublasLt.so.13 $(if $(HAVE_NCCL),$(VM)/libnccl.so.2)
$(VM_OBJ): CFLAGS += -O3 -march=x86-64-v3 -fno-strict-aliasing -fwrapv -fPIC -Wno-maybe-uninitialized
$(VM)/libcudart.so.13: $(VM_RT)
$(VM)/libcublas.so.13: $(VM_BLAS) | $(VM)/libcudart.so.13
$(VM)/libcublasLt.so.13: $(VM_LT) | $(VM)/libcudart.so.13
$(VM)/libnccl.so.2: $(VM_NCCL) | $(VM)/libcudart.so.13
$(VM)/libcudart.so.13 $(VM)/libcublas.so.13 $(VM)/libcublasLt.so.13 $(VM)/libnccl.so.2:
	@mkdir -p $(@D)
	@echo "  LINK $@"
	$(Q)$(CC) -shared -pthread -o $@ $^ -Wl,-soname,$(@F),--version-script=tests/ptxvm/$(firstword $(subst ., ,$(@F))).map,-z,defs $(if $|,-L$(VM) -l:libcudart.so.13) -lm

# Test programs: of the CPU program; of the machine; of the stand-ins' runtime; of the kernels and the
# CUDA backend, which use the CUDA runtime alone and so run on the stand-ins or on a GPU.
objects    = $(patsubst %,$(BUILD)/%.o,$(basename $(wildcard $(1))))
RT_TEST_OBJ  := $(filter-out $(if $(HAVE_NCCL),,%/test_rt_nccl.o),$(call objects,tests/ptxvm/test_rt_*.c tests/ptxvm/rt_fixture.c tests/ptxvm/rt_kernels.cu tests/ptxvm/fatbin.c host/dtype.c))
VM_TEST_OBJ  := $(filter-out $(RT_TEST_OBJ),$(call objects,$(VM_TEST)))
GPU_TEST_OBJ := $(filter-out $(if $(PKGS),,%/test_cuda_engine.o %/test_cuda_faults.o %/test_cuda_metrics.o %/test_cuda_program.o),$(call objects,tests/test_cuda_*.c tests/gpu_*.c tests/cuda_*.cu)) \
                $(patsubst %,$(BUILD)/tests/%.o,alloc_guard ops_fixture golden $(if $(PKGS),engine_fixture invariance program net_client answers faulty golden_program))
$(BUILD)/machine_tests: $(VM_TEST_OBJ) $(VM_CORE) $(BUILD)/tests/shim.o
$(BUILD)/runtime_tests: $(RT_TEST_OBJ) $(BUILD)/tests/shim.o | $(VM_LIBS)
$(BUILD)/gpu_tests: $(GPU_TEST_OBJ) $(LIB_OBJ) $(BUILD)/tests/$(SHIM).o
$(BUILD)/machine_tests $(BUILD)/runtime_tests $(BUILD)/gpu_tests:
	@echo "  LINK $@"
	$(Q)$(CXX) $(LDFLAGS) -o $@ $^ $(GTEST) $(LDLIBS)
$(BUILD)/runtime_tests: LDLIBS += -lcublas $(if $(HAVE_NCCL),-L$(VM) -l:libnccl.so.2)

# What ptxas said of every kernel, and the shared memory that the tests launch them with.
cuda-report: $(CUDA_OBJ) $(if $(NVCC),$(BUILD)/gpu_tests $(VM)/libcudart.so.13 $(VM)/libcublasLt.so.13)  ## what every kernel takes; fails on a spill
	@$(if $(NVCC),LD_LIBRARY_PATH=$(VM) PTXVM_ARCH=$(firstword $(ARCHS)) PTXVM_TRACE=1 $(BUILD)/gpu_tests 2>&1 | \
	  grep '^ptxvm: .*<<<' >$(BUILD)/launches.txt || true)
	@sh scripts/cuda_report.sh $(if $(NVCC),-t $(BUILD)/launches.txt) $(CUDA_OBJ:.o=.ptxas)

run: $(BUILD)/moeserve  ## serves the demo model and asks it something
	@sh scripts/demo.sh $(BUILD)/moeserve $(ONCE)

# Every run of a test program leaves a log, and the last line of `make test` adds them up. The kernels
# run on the PTX of each architecture, each under another schedule.
# (The longest first, so that no core waits for the other at the end.)
RUNS     := cpu $(if $(NVCC),machine runtime races $(filter sm_89,$(patsubst %,sm_%,$(ARCHS))) $(filter-out sm_89,$(patsubst %,sm_%,$(ARCHS))))
RUN_LOGS := $(RUNS:%=$(BUILD)/log/%.log)
# (The CUDA libraries take 0.1 s of each of its hundreds of starts, their stand-ins next to nothing.)
$(BUILD)/log/cpu.log: COMMAND = $(if $(SAN),TEST_TIMEOUT_S=900) $(if $(NVCC),LD_LIBRARY_PATH=$(VM)) MOESERVE_BIN=$(BUILD)/moeserve $(BUILD)/moeserve_tests
$(BUILD)/log/machine.log: COMMAND = $(BUILD)/machine_tests
$(BUILD)/log/runtime.log: COMMAND = LD_LIBRARY_PATH=$(VM) $(BUILD)/runtime_tests
# (Shapes are fixed, numbers are drawn anew in each run.)
SEED     := $(or $(OPS_TEST_SEED),$(shell date +%s))
ON_VM     = OPS_TEST_SEED=$(SEED) TEST_TIMEOUT_S=600 LD_LIBRARY_PATH=$(VM) MOESERVE_BIN=$(BUILD)/moeserve
$(BUILD)/log/sm_%.log: COMMAND = $(ON_VM) PTXVM_ARCH=$(ARCH_OF_LOG) $(SCHEDULE_$(ARCH_OF_LOG)) $(BUILD)/gpu_tests
$(BUILD)/log/races.log: COMMAND = $(ON_VM) PTXVM_ARCH=$(firstword $(filter 89,$(ARCHS)) $(ARCHS)) PTXVM_RACES=1 $(BUILD)/gpu_tests
ARCH_OF_LOG   = $(@F:sm_%.log=%)
# (Whole servers, the engine's many steps, and most models on several GPUs, once are enough.)
$(BUILD)/log/races.log $(filter-out %/sm_89.log,$(filter $(BUILD)/log/sm_%,$(RUN_LOGS))): EXCEPT = -CudaEngine.*:CudaProgram.*:CudaModel.ContinuesAsRefDoes:CudaFaults.*:CudaModelRanks.*Float32:CudaModelRanks.SumsIn*:CudaModelRanks.*ForEveryModel*
SCHEDULE_80  := PTXVM_STREAMS=lazy PTXVM_SCHEDULE=reverse
SCHEDULE_86  := PTXVM_STREAMS=lazy PTXVM_ASYNC_COPY=eager
SCHEDULE_90  := PTXVM_SCHEDULE=random:$(SEED)
SCHEDULE_120 := PTXVM_STREAMS=sync
CUDA_TESTS   := $(wildcard tests/test_cuda_*.c tests/ptxvm/test_*.c)

$(RUN_LOGS): $(BUILD)/moeserve $(BUILD)/moeserve_tests $(if $(NVCC),$(VM_LIBS) $(BUILD)/machine_tests $(BUILD)/runtime_tests $(BUILD)/gpu_tests)
$(RUN_LOGS): FORCE
	@echo "  TEST $(basename $(@F))$(if $(filter OPS_TEST_SEED%,$(COMMAND)), OPS_TEST_SEED=$(SEED))"
	$(Q)sh tests/run.sh $@ env $(COMMAND) --gtest_brief=1 --gtest_filter='$(or $(FILTER),*)$(if $(findstring -,$(FILTER)),,$(EXCEPT))'
$(filter-out %/cpu.log,$(RUN_LOGS)): | $(BUILD)/log/cpu.log
FORCE:

test: $(RUN_LOGS)  ## runs every test (FILTER=Suite.* for some)
	@sh tests/run.sh sum $(if $(NVCC),,-k "$(NO_CUDA)" "$(CUDA_TESTS)") $(RUN_LOGS)
NO_CUDA := $(if $(filter 0,$(CUDA)),they are left out by CUDA=0,there is no nvcc; install the CUDA Toolkit 13)

asan tsan:  ## builds and tests with AddressSanitizer + UBSan / ThreadSanitizer
	$(MAKE) SAN=$@ test

bench: $(BUILD)/moeserve $(BUILD)/bench_ops $(BUILD)/bench_model  ## kernels and end to end, on this machine
	$(BUILD)/bench_ops
	$(BUILD)/bench_model
	sh scripts/bench.sh $(BUILD)/moeserve

fuzz: $(FUZZ)  ## every fuzz target for FUZZ_SECONDS (60) seconds; needs clang
	sh scripts/fuzz.sh $(FUZZ_SECONDS) $(FUZZ)

# The parsers under libFuzzer: everything but the kernels, as an archive of which each target takes what
# it needs.
build/fuzz/%: tests/fuzz/%.c $(wildcard host/*.[ch] net/*.[ch]) $(SRC_CXX)
	@$(MAKE) --no-print-directory CC=clang CXX=clang++ CUDA=0 BUILD=build/fuzzobj CFLAGS="-O1 -g $(FUZZ_FLAGS)" \
	  CXXFLAGS="-O1 -g $(FUZZ_FLAGS)" build/fuzzobj/fuzz.a
	@mkdir -p $(@D)
	clang $(CPPFLAGS) -std=c11 -g -O1 -fsanitize=fuzzer,address,undefined -c -o $@.o $<
	clang++ -fsanitize=fuzzer,address,undefined -o $@ $@.o build/fuzzobj/fuzz.a $(LDLIBS)
build/fuzzobj/fuzz.a: $(filter-out $(BUILD)/host/cpu/%,$(LIB_OBJ))
	ar rcs $@ $^

format:         ## lays out all sources by .clang-format
	@clang-format -i $(FORMATTED)
check-format:   ## says which sources are not
	@clang-format --dry-run -Werror $(FORMATTED)

install: $(BUILD)/moeserve  ## installs below PREFIX (/usr/local)
	install -D -m 755 $(BUILD)/moeserve $(DESTDIR)$(PREFIX)/bin/moeserve
	install -d $(DESTDIR)$(PREFIX)/share/moeserve/demo-moe
	install -m 644 configs/demo-moe/* $(DESTDIR)$(PREFIX)/share/moeserve/demo-moe
	install -m 644 configs/moeserve.service $(DESTDIR)$(PREFIX)/share/moeserve

clean:          ## removes build/
	rm -rf build

help:           ## lists the targets
	@sed -n 's/^\([a-z -]*\):.*## /  make \1\t/p' Makefile | expand -t 28

.PHONY: all run test cuda-report asan FORCE tsan bench fuzz format check-format install clean help
-include $(OBJ:.o=.d) $(TEST_OBJ:.o=.d) $(SIMDE_OBJ:.o=.d)
ifneq ($(NVCC),)
-include $(patsubst %.o,%.d,$(VM_OBJ) $(VM_TEST_OBJ) $(RT_TEST_OBJ) $(GPU_TEST_OBJ))
endif
