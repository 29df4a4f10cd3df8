# Everything runs in .venv, made from the pinned requirements, with the package built in place and warnings as errors.
# A stamp file says what is done; a change of the C, the Cython, the build or the pins makes exactly that again.
PYTHON ?= python3
BIN := .venv/bin
SOURCES := setup.py pyproject.toml $(wildcard csrc/*.[ch] fastckpt/*.pyx fastckpt/*.px[di])
PIP := $(BIN)/python -m pip install --disable-pip-version-check --quiet
# What a sanitizer says goes to files, as a process that a test starts may speak to nobody; one report is a failure. UBSan
# beside ASan has no file of its own: it aborts, and no test expects that of a child.
RUNTIME = $(shell $(CC) -print-file-name=libasan.so) $(shell $(CC) -print-file-name=libubsan.so)
REPORT = $(CURDIR)/.$@/report
SANITIZED = LD_PRELOAD="$(RUNTIME)" ASAN_OPTIONS=detect_leaks=0:log_path=$(REPORT) PYTHONMALLOC=malloc \
	UBSAN_OPTIONS=halt_on_error=1:abort_on_error=1:print_stacktrace=1
NO_REPORT = ; rc=$$?; ! cat $(REPORT).* 2>/dev/null && exit $$rc

TSAN = LD_PRELOAD="$(shell $(CC) -print-file-name=libtsan.so)" TSAN_OPTIONS=exitcode=66:die_after_fork=0:log_path=$(REPORT) \
	OMP_NUM_THREADS=1 FASTCKPT_NO_ROOM=1
THREADED := $(addprefix tests/test_,$(addsuffix .py,core direct hostile writing fetching ring background concurrent lanes \
	load limits shrinking salvage commit filesystems table names))
VALGRIND := valgrind -q --error-exitcode=9 --undef-value-errors=no --suppressions=tests/valgrind.supp
# Left out: what imports torch, which takes minutes there; gigabytes; processes of their own; races with signals and threads.
NO_WAIT := -k "not dlpack_tensor and not 2_gib and not one_call_can_move and not openat2 and not interrupted and not other_threads"
MEMORY := $(addprefix tests/test_,$(addsuffix .py,core core_meta table))

.PHONY: build demo test bench lint asan tsan valgrind coverage fuzz faults clean
build: .venv/built

demo: build .venv/demo
	$(BIN)/python examples/mnist.py

test: build
	$(BIN)/pytest $(ARGS)

# The micro costs, then the whole picture, which takes one to two hours and 30 GB; ARGS="--quick" takes a minute,
# and ARGS="--add FILE" goes on where FILE ends.
bench: build .venv/bench
	$(BIN)/pytest benches --benchmark-columns=min,median,iqr,rounds
	$(BIN)/fastckpt bench $(ARGS)

# Crashes, faults and full disks at length; ARGS names checks, or --scale 0.1. What needs root or a missing tool says so.
faults: build
	PYTHONPATH=tests $(BIN)/python -m faults $(ARGS)

# Inputs made at random, for some minutes; ARGS="canon --runs 500000000", or "folders model --seconds 60", runs parts as
# long as that. The first needs clang's fuzzer runtime.
fuzz: build
	PYTHONPATH=tests $(BIN)/python -m fuzz $(ARGS)

lint: build
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy --strict fastckpt
	$(BIN)/python -m mypy.stubtest fastckpt._core
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/cython-lint fastckpt  # it calls pycodestyle
	$(BIN)/clang-format --dry-run -Werror csrc/*.[ch] fastckpt/bench/*.c

asan: .asan/built
	rm -f $(REPORT).*
	$(SANITIZED) PYTHONPATH=$(CURDIR)/.asan/lib $(BIN)/pytest -m "not no_asan" $(ARGS) $(NO_REPORT)

# The tests in which C has threads; the tests of the core that do without torch, under valgrind (memory errors only).
tsan: .tsan/built
	rm -f $(REPORT).*
	$(TSAN) PYTHONPATH=$(CURDIR)/.tsan/lib $(BIN)/pytest -m "not no_asan and not slow" $(or $(ARGS),$(THREADED)) $(NO_REPORT)

valgrind: build
	PYTHONMALLOC=malloc FASTCKPT_NO_ROOM=1 $(VALGRIND) $(BIN)/python -m pytest -m "not no_asan and not slow" $(NO_WAIT) $(or $(ARGS),$(MEMORY))

# Branches of the C and lines of the Cython (it knows no branches) that the tests take. An interrupt may strike in the tracer.
coverage: .coverage/built
	find .coverage -name '*.gcda' -delete
	PYTHONPATH=$(CURDIR)/.coverage/lib $(BIN)/coverage run $(BIN)/pytest \
		--deselect tests/test_core.py::test_write_can_be_interrupted_between_pieces $(ARGS)
	$(BIN)/coverage report
	gcov -b -c -o .coverage/temp*/csrc csrc/*.c | grep -A4 "^File 'csrc/.*c'"; rm -f *.gcov

clean:
	rm -rf .venv .asan .tsan .coverage build dist *.egg-info fastckpt/_core.c fastckpt/_core*.so

.venv/tools: requirements/dev.txt
	$(PYTHON) -m venv --clear .venv
	$(PIP) -r requirements/dev.txt
	touch $@

.venv/demo: .venv/tools requirements/demo.txt
	$(PIP) --no-deps -r requirements/demo.txt
	touch $@

.venv/bench: .venv/tools requirements/bench.txt
	$(PIP) --no-deps -r requirements/bench.txt
	touch $@

.venv/built: .venv/tools $(SOURCES)
	rm -f fastckpt/_core.c fastckpt/_core*.so
	FASTCKPT_WERROR=1 $(PIP) --no-deps --no-build-isolation --editable .
	touch $@

.tsan/built: .venv/built $(wildcard fastckpt/*.py fastckpt/*/*.py)
	FASTCKPT_SANITIZE=thread FASTCKPT_WERROR=1 $(BIN)/python setup.py --quiet build --build-base .tsan --build-lib .tsan/lib
	touch $@

.coverage/built: .venv/built $(wildcard fastckpt/*.py fastckpt/*/*.py)
	FASTCKPT_COVERAGE=1 $(BIN)/python setup.py --quiet build --build-base .coverage --build-lib .coverage/lib
	touch $@

.asan/built: .venv/built $(wildcard fastckpt/*.py fastckpt/*/*.py)
	FASTCKPT_SANITIZE=address,undefined FASTCKPT_WERROR=1 $(BIN)/python setup.py --quiet build --build-base .asan --build-lib .asan/lib
	touch $@
