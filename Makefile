# SPDX-License-Identifier: Apache-2.0
#
# make run    build the gadget and watch real traffic with it
# make test   pass the tests
# make help   the other targets

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory

IMAGE ?= network:latest
# the same gadget, which counts: see connections/
CONNECTIONS_IMAGE ?= $(shell echo '$(IMAGE)' | sed -E 's,(:[^:/]*)?$$,-connections\1,')
# where the image is compiled: auto, container (IG's builder image) or local (clang)
BUILDER ?= auto
# flags for `ig image build`
BUILD_FLAGS ?=
# how long `make fuzz` looks for new inputs
FUZZTIME ?= 1m
# how long `make soak` makes traffic
SOAK ?= 30m
# the image's date: that of the last commit, so that a build can be repeated
SOURCE_DATE_EPOCH ?= $(shell git log -1 --format=%ct 2>/dev/null || echo 0)
export SOURCE_DATE_EPOCH

IG_MODULE := github.com/inspektor-gadget/inspektor-gadget
IG_VERSION := $(shell awk '$$1 == "$(IG_MODULE)" { print $$2 }' go.mod)
GOLANGCI_LINT_VERSION := v2.15.0
GOFUMPT_VERSION := v0.12.0
ACTIONLINT_VERSION := v1.7.12
COSIGN_VERSION := v2.6.5
CYCLONEDX_VERSION := v1.10.0

# A user who is not root is asked for root where the recipe says so.
SUDO := $(if $(filter 0,$(shell id -u)),,sudo)
ASK_ROOT := $(if $(SUDO),test/ask-root,:)

BUILD := $(CURDIR)/build
TOOLS := $(BUILD)/bin
INCLUDE := $(BUILD)/include
LAYOUT := internal/gadget/image/layout
# The user's own ig serves when it has the version of the library.
IG := $(shell ig version 2>/dev/null | grep -qx '$(IG_VERSION)' && command -v ig || echo $(BUILD)/ig)

GADGET_SOURCES := program.bpf.c program.h gadget.yaml $(wildcard ebpf/*.h)
CONNECTIONS_SOURCES := $(GADGET_SOURCES) $(wildcard connections/*)
C_SOURCES := $(filter %.c %.h,$(CONNECTIONS_SOURCES))

.PHONY: help
help: ## list the targets
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 20

FORCE:

# --- what the machine needs ---------------------------------------------------

.PHONY: deps
deps: ## install the Debian or Ubuntu packages that are missing
	@test/install-packages packages.txt

$(BUILD):
	@mkdir -p $@

# --- the gadget image ---------------------------------------------------------

# $(1): a program of IG's, with the version that it tells, as its own builds have it
build_ig = CGO_ENABLED=0 go build -trimpath -o $@ \
	-ldflags '-s -w -X $(IG_MODULE)/internal/version.version=$(IG_VERSION)' \
	$(IG_MODULE)/cmd/$(1)

$(BUILD)/ig: go.mod go.sum | $(BUILD)
	@echo "building ig $(IG_VERSION) (2 to 4 minutes the first time)"
	@$(call build_ig,ig)

# What talks to `ig daemon`, for its test.
$(BUILD)/gadgetctl: go.mod go.sum | $(BUILD)
	@echo "building gadgetctl $(IG_VERSION)"
	@$(call build_ig,gadgetctl)

# One include path for both architectures: ig's own is outside of the tree, and
# each architecture has a vmlinux.h of its own.
$(INCLUDE)/vmlinux.h: go.mod | $(BUILD)
	@mkdir -p $(INCLUDE)
	@ln -sfn "$$(go list -m -f '{{.Dir}}' $(IG_MODULE))/include/gadget" $(INCLUDE)/gadget
	@printf '%s\n' '#if defined(__TARGET_ARCH_x86)' '#include <gadget/amd64/vmlinux.h>' \
		'#elif defined(__TARGET_ARCH_arm64)' '#include <gadget/arm64/vmlinux.h>' \
		'#else' '#error "no vmlinux.h for this architecture"' '#endif' > $@

# What an image is made with, besides its sources: it changes when they do.
$(BUILD)/image.options: FORCE | $(BUILD)
	@options='$(strip $(IMAGE) $(BUILDER) $(IG_VERSION) $(SOURCE_DATE_EPOCH) $(BUILD_FLAGS))'; \
	[ "$$(cat $@ 2>/dev/null)" = "$$options" ] || echo "$$options" > $@

.PHONY: image
image: $(BUILD)/image.stamp $(BUILD)/connections.stamp ## build the gadget's images into ig's store, and into netgadget

# $(1): the image; $(2): its archive, for netgadget and for guests; $(3): more flags
build_image = rm -f $@ $(2); \
	$(ASK_ROOT) "ig keeps images in /var/lib/ig"; \
	SUDO='$(SUDO)' IG='$(IG)' IG_VERSION='$(IG_VERSION)' INCLUDE='$(INCLUDE)' \
		test/build-image $(BUILDER) $(1) $(CURDIR) $(3) $(BUILD_FLAGS); \
	$(SUDO) $(IG) image export $(1) $(2) >/dev/null; \
	$(if $(SUDO),$(SUDO) chown "$$(id -u):$$(id -g)" $(2);)

$(BUILD)/image.stamp: $(GADGET_SOURCES) test/build-image $(IG) $(INCLUDE)/vmlinux.h $(BUILD)/image.options | deps
	@$(call build_image,$(IMAGE),$(BUILD)/network.tar)
	@rm -rf $(LAYOUT)/blobs $(LAYOUT)/index.json $(LAYOUT)/oci-layout; \
	tar -xf $(BUILD)/network.tar -C $(LAYOUT)
	@touch $@

$(BUILD)/connections.stamp: $(CONNECTIONS_SOURCES) test/build-image $(IG) $(INCLUDE)/vmlinux.h $(BUILD)/image.options | deps
	@$(call build_image,$(CONNECTIONS_IMAGE),$(BUILD)/network-connections.tar,-f connections/build.yaml)
	@touch $@

# --- netgadget ----------------------------------------------------------------

$(BUILD)/netgadget: $(BUILD)/image.stamp FORCE
	@CGO_ENABLED=0 go build -trimpath -o $@ ./cmd/netgadget

$(BUILD)/boot: FORCE | $(BUILD)
	@CGO_ENABLED=0 go build -trimpath -o $@ ./internal/vm/boot

.PHONY: build
build: $(BUILD)/netgadget $(BUILD)/connections.stamp ## build the gadget's images and netgadget

.PHONY: build-with-metadata image-with-metadata
build-with-metadata: ## build the same with `ig image build --update-metadata`
build-with-metadata image-with-metadata: %-with-metadata:
	@$(MAKE) $* BUILD_FLAGS=--update-metadata

# These programs by the names that one types.
build/ig build/gadgetctl build/netgadget build/boot: build/%: $(BUILD)/% ;

.PHONY: run
run: build $(BUILD)/boot ## watch this machine's attempts to talk, or a VM's where it cannot
	@SUDO='$(SUDO)' IG='$(IG)' IMAGE='$(IMAGE)' test/run

# --- tests --------------------------------------------------------------------

# What signs an image, for a release and in the tests.
COSIGN := $(TOOLS)/cosign-$(COSIGN_VERSION)

$(COSIGN):
	@echo "building cosign $(COSIGN_VERSION) (some minutes the first time)"
	@$(call install,github.com/sigstore/cosign/v2/cmd/cosign,$(COSIGN_VERSION))

# What needs no root.
PACKAGES := ./cmd/... ./internal/... ./test/e2e/measured ./test/kernels ./test/report/... ./test/workflows ./test/artifacthub
# Nor do these modules of their own.
MODULES := test/opinion test/dashboard
# As root, with a build cache of root's own, so that nothing of root's is left in
# this user's.
KEPT := PATH BUILDER E2E_IN E2E_KERNEL GOFLAGS IMAGE_FILE KERNEL_CACHE
AS_ROOT := $(if $(SUDO),-exec 'sudo env CGO_ENABLED=0 "IG=$(IG)" "COSIGN=$(COSIGN)" "GOMODCACHE=$(shell go env GOMODCACHE)" \
	$(foreach name,$(KEPT),$(if $(filter-out file undefined,$(origin $(name))),"$(name)=$($(name))"))')
# With the flag of the builds: what they compiled, which is most, serves again.
GO_TEST := CGO_ENABLED=0 IG='$(IG)' COSIGN='$(COSIGN)' go test -trimpath -count=1 -json
# A test that is skipped fails.
REPORT := go run ./test/report

# The name of one e2e test, which is then run with all that it logs. E2E_FLAGS are
# the tests' own. One test, and the matrices, are for numbers: they run long.
RUN ?=
E2E_FLAGS ?=
LONG := -attempts 10000 -packets 100000 -processes 20000

# The parts of make test: PARTS are those that it runs.
PARTS := packages modules hooks unit image e2e
packages := $(GO_TEST) $(PACKAGES)
modules := for module in $(MODULES); do (cd $$module && $(GO_TEST) ./...) || status=$$?; done
# The kernel's side of the books: on this kernel or in a VM.
hooks := $(GO_TEST) -tags hooks -run TestSystemCalls \
	-exec '$(if $(SUDO),sudo )$(CURDIR)/test/in-vm' ./test/unit
unit := $(GO_TEST) $(AS_ROOT) ./test/unit
image := $(GO_TEST) -timeout 60m $(AS_ROOT) ./test/image
e2e := $(GO_TEST) -timeout 60m $(AS_ROOT) ./test/e2e $(E2E_FLAGS)
run_parts = { status=0; $(foreach part,$(1),$($(part)) || status=$$?;) exit $$status; } | $(REPORT)

.PHONY: test
test: build $(BUILD)/boot $(BUILD)/gadgetctl $(if $(filter image,$(PARTS)),$(COSIGN)) ## pass all tests
	@$(ASK_ROOT) "the tests load eBPF programs"
	@$(call run_parts,$(PARTS))

.PHONY: test-unit
test-unit: build ## pass the tests of the packages, of policies and the dashboard, and those of one packet, one verdict
	@$(ASK_ROOT) "the tests load eBPF programs"
	@$(call run_parts,packages modules unit)

.PHONY: test-hooks
test-hooks: build $(BUILD)/boot ## pass the test of what system calls leave in the books
	@$(ASK_ROOT) "the tests load eBPF programs"
	@$(call run_parts,hooks)

.PHONY: test-image
test-image: build $(COSIGN) ## pass the tests of the image: digest, metadata, registry, errors, a run
	@$(ASK_ROOT) "ig keeps images in /var/lib/ig"
	@$(call run_parts,image)

.PHONY: test-e2e
test-e2e: build $(BUILD)/gadgetctl ## pass the tests with real traffic, in a VM where this machine cannot (RUN=TestWho: one, and its numbers)
	@$(ASK_ROOT) "the tests load eBPF programs"
ifeq ($(RUN),)
	@$(call run_parts,e2e)
else
	@$(filter-out -json,$(GO_TEST)) -timeout 60m -v -run '^$(RUN)$$' $(AS_ROOT) ./test/e2e $(LONG) $(E2E_FLAGS)
endif

PROGRAMS ?=
.PHONY: test-programs
test-programs: build ## have real servers be called, before the gadget and after, in a VM (PROGRAMS=REGEX, E2E_KERNEL=6.12)
	@$(ASK_ROOT) "mmdebstrap makes a root file system"
	@E2E_KERNEL=$${E2E_KERNEL:-6.12} $(filter-out -json,$(GO_TEST)) -timeout 40m -v $(AS_ROOT) ./test/programs $(if $(PROGRAMS),-programs '$(PROGRAMS)')

.PHONY: test-service
test-service: build ## install netgadget as a service under a true systemd, in a VM, and remove it (E2E_KERNEL=6.12)
	@$(ASK_ROOT) "mmdebstrap makes a root file system"
	@E2E_KERNEL=$${E2E_KERNEL:-6.12} $(filter-out -json,$(GO_TEST)) -timeout 40m -v $(if $(RUN),-run '^$(RUN)$$') $(AS_ROOT) ./test/service

.PHONY: test-containers
test-containers: build ## have containers of containerd, Docker and Podman talk, in a VM (E2E_KERNEL=6.12)
	@$(ASK_ROOT) "mmdebstrap makes a root file system"
	@E2E_KERNEL=$${E2E_KERNEL:-6.12} $(filter-out -json,$(GO_TEST)) -timeout 40m -v $(if $(RUN),-run '^$(RUN)$$') $(AS_ROOT) ./test/containers

# Flags of the test's own: -keep lets the cluster run until Ctrl-C.
K8S_FLAGS ?=
.PHONY: test-k8s
test-k8s: build ## run the image by kubectl gadget in a cluster with one node, a VM (some 40 minutes the first time, then 25; K8S_FLAGS=-keep, E2E_KERNEL=6.12)
	@test/install-packages packages-k8s.txt
	@$(ASK_ROOT) "the cluster has a network namespace of its own"
	@$(filter-out -json,$(GO_TEST)) $(AS_ROOT) ./test/k8s/controlplane ./test/k8s/policies
	@{ status=0; E2E_KERNEL=$${E2E_KERNEL:-6.12} $(filter-out -json,$(GO_TEST)) -timeout 120m -v $(AS_ROOT) ./test/k8s -image $(IMAGE) -connections $(CONNECTIONS_IMAGE) -netgadget $(BUILD)/netgadget -dir $(BUILD)/k8s $(K8S_FLAGS) || status=$$?; \
	$(if $(SUDO),$(SUDO) chown -R "$$(id -u):$$(id -g)" $(BUILD)/k8s;) exit $$status; }

# Names of kernels (see build/boot --help); none: all of them. TABLE=docs/evidence.md
# writes the table of all of them there, when they are green.
KERNELS ?=
TABLE ?=
# The architectures of those that this machine does not have.
FOREIGN = $(filter-out $(shell go env GOARCH),$(if $(KERNELS),$(sort \
	$(foreach kernel,$(KERNELS),$(if $(filter %-arm64,$(kernel)),arm64,amd64))),amd64 arm64))

.PHONY: test-kernels
test-kernels: build $(BUILD)/gadgetctl $(foreach arch,$(FOREIGN),$(addprefix $(BUILD)/$(arch)/,ig gadgetctl netgadget)) ## pass the e2e tests under each KERNELS (5.10, newest-arm64, ...), for a table
	@$(if $(FOREIGN),test/install-packages packages-foreign.txt)
	@IG='$(IG)' go run ./test/kernels $(if $(TABLE),-readme $(TABLE)) -flags '$(LONG) $(E2E_FLAGS)' $(KERNELS)

# Rows may come from several runs, with one SOURCE_DATE_EPOCH: the same image.
.PHONY: kernels-table
kernels-table: build ## write the rows that test-kernels left into docs/evidence.md, when all are there and green
	@go run ./test/kernels -only-table -readme docs/evidence.md

# The same programs for guests of the other architecture.
$(BUILD)/%/ig: go.mod go.sum | $(BUILD)
	@echo "building ig $(IG_VERSION) for $* (2 to 4 minutes the first time)"
	@GOARCH=$* $(call build_ig,ig)

$(BUILD)/%/gadgetctl: go.mod go.sum | $(BUILD)
	@echo "building gadgetctl $(IG_VERSION) for $*"
	@GOARCH=$* $(call build_ig,gadgetctl)

$(BUILD)/%/netgadget: $(BUILD)/image.stamp FORCE
	@GOARCH=$* CGO_ENABLED=0 go build -trimpath -o $@ ./cmd/netgadget

# By the environment: the tests are built again for a VM.
.PHONY: soak
soak: private export GOFLAGS := $(GOFLAGS) -tags=soak
soak: build ## make traffic for SOAK (30m), and look for entries and memory that are left
	@$(ASK_ROOT) "the tests load eBPF programs"
	@CGO_ENABLED=0 IG='$(IG)' go test -trimpath -count=1 -v -timeout 0 -run TestSoak $(AS_ROOT) ./test/e2e -soak $(SOAK)

.PHONY: fuzz
fuzz: build ## compare the filter with gopacket on random packets, for FUZZTIME (1m)
	@$(ASK_ROOT) "the tests load eBPF programs"
	@CGO_ENABLED=0 go test -run '^$$' -fuzz FuzzPacket -fuzztime $(FUZZTIME) $(AS_ROOT) ./test/unit

# Those that need nothing but socket filters run on this machine's own kernel: under
# emulation they would tell nothing.
NATIVE := ^Benchmark(Packets|Attempts|Full|Traffic|Load|Scale)$$
# So does this one, which takes minutes, by itself.
READER := ^BenchmarkReader$$
# Of the others: which, their own flags, the kernel of the VM and flags of it. In a
# VM with --counted one turn is enough.
BENCH ?= .
BENCH_FLAGS ?=
VM_KERNEL ?=
VM_FLAGS ?=
GO_BENCH := CGO_ENABLED=0 go test -trimpath -run '^$$' -benchtime 1x -count=1 -timeout 60m

.PHONY: bench
bench: bench-native bench-reader bench-hooks ## measure what the gadget costs: the next three

.PHONY: bench-native bench-reader bench-write
bench-native: build ## measure what a packet costs, beside other filters, on this kernel
	@$(ASK_ROOT) "the benchmarks load eBPF programs"
	@$(GO_BENCH) -bench '$(NATIVE)' $(if $(SUDO),-exec sudo) ./bench

bench-reader: build ## measure how many events per second netgadget and ig take, on this kernel
	@$(ASK_ROOT) "the benchmarks load eBPF programs"
	@$(GO_BENCH) -bench '$(READER)' $(if $(SUDO),-exec sudo) ./bench -ig '$(IG)' $(BENCH_FLAGS)

bench-write: build ## the same two, and write tables and plots into docs
	@$(ASK_ROOT) "the benchmarks load eBPF programs"
	@$(GO_BENCH) -bench '$(NATIVE)|$(READER)' $(if $(SUDO),-exec sudo) ./bench -ig '$(IG)' -write $(CURDIR)/docs

.PHONY: bench-hooks
bench-hooks: build $(BUILD)/boot ## measure what hooks and a whole run cost, here or in a VM (BENCH=REGEX, VM_KERNEL=5.10, VM_FLAGS=--counted)
	@$(ASK_ROOT) "the benchmarks load eBPF programs"
	@$(GO_BENCH) -bench '$(BENCH)' -skip '$(NATIVE)|$(READER)' \
		-exec '$(SUDO) env VM_KERNEL=$(VM_KERNEL) VM_TIMEOUT=60m "VM_FLAGS=$(VM_FLAGS)" $(CURDIR)/test/in-vm' ./bench $(BENCH_FLAGS)

.PHONY: bench-check
bench-check: build ## fail when a packet that is no attempt costs more than its limits
	@$(ASK_ROOT) "the benchmarks load eBPF programs"
	@$(GO_BENCH) -bench '^BenchmarkCheck$$' $(if $(SUDO),-exec sudo) ./bench -check

# --- a release ----------------------------------------------------------------

# Its version is the one that Artifact Hub is told; TAG, when there is one, must be it.
VERSION := v$(shell awk '$$1 == "version:" { print $$2 }' artifacthub-pkg.yml)
TAG ?= $(VERSION)
RELEASE := $(BUILD)/release
# What a binary holds: modules, their licences, the standard library.
CYCLONEDX := $(TOOLS)/cyclonedx-gomod-$(CYCLONEDX_VERSION)

$(CYCLONEDX):
	@echo "building cyclonedx-gomod $(CYCLONEDX_VERSION)"
	@$(call install,github.com/CycloneDX/cyclonedx-gomod/cmd/cyclonedx-gomod,$(CYCLONEDX_VERSION))

# The same bytes from every clone of a commit, with the same compilers.
.PHONY: release
release: build $(BUILD)/amd64/netgadget $(BUILD)/arm64/netgadget $(CYCLONEDX) ## leave what a release has in build/release, with checksums
	@[ '$(TAG)' = '$(VERSION)' ] || { \
	echo 'release: the tag is $(TAG), and artifacthub-pkg.yml says $(VERSION): make them one' >&2; exit 1; }
	@rm -rf $(RELEASE); mkdir -p $(RELEASE)
	@cp $(BUILD)/network.tar $(BUILD)/network-connections.tar $(RELEASE)
	@for arch in amd64 arm64; do \
	cp $(BUILD)/$$arch/netgadget $(RELEASE)/netgadget-linux-$$arch; \
	$(CYCLONEDX) bin -json -std -licenses -noserial -notimestamp -version $(VERSION) \
		-output $(RELEASE)/netgadget-linux-$$arch.cdx.json $(RELEASE)/netgadget-linux-$$arch 2>/dev/null; done
	@go run ./test/sbom -version $(VERSION) -library $(IG_VERSION) $(RELEASE)/network.tar >$(RELEASE)/network.cdx.json
	@go run ./test/sbom -version $(VERSION) -library $(IG_VERSION) $(RELEASE)/network-connections.tar >$(RELEASE)/network-connections.cdx.json
	@cd $(RELEASE) && sha256sum * >SHA256SUMS && cat SHA256SUMS

# Where docker login leaves what it is told; cosign looks there by itself.
publish: export REGISTRY_AUTH_FILE ?= $(wildcard $(HOME)/.docker/config.json)

.PHONY: publish
publish: $(IG) $(COSIGN) ## push the images of build/release TO=REGISTRY/OWNER, signed by COSIGN_PRIVATE_KEY
	@SUDO='$(SUDO)' IG='$(IG)' COSIGN='$(COSIGN)' .ci/publish '$(TO)' '$(VERSION)'

# --- style --------------------------------------------------------------------

$(TOOLS)/golangci-lint-$(GOLANGCI_LINT_VERSION):
	@echo "building golangci-lint $(GOLANGCI_LINT_VERSION) (some minutes the first time)"
	@$(call install,github.com/golangci/golangci-lint/v2/cmd/golangci-lint,$(GOLANGCI_LINT_VERSION))

$(TOOLS)/gofumpt-$(GOFUMPT_VERSION):
	@$(call install,mvdan.cc/gofumpt,$(GOFUMPT_VERSION))

$(TOOLS)/actionlint-$(ACTIONLINT_VERSION):
	@$(call install,github.com/rhysd/actionlint/cmd/actionlint,$(ACTIONLINT_VERSION))

# Not in go.mod: what the tools depend on must not move what IG depends on.
install = GOBIN=$(TOOLS) CGO_ENABLED=0 GOFLAGS= nice go install $(1)@$(2) && mv $(TOOLS)/$(notdir $(1)) $@

GOLANGCI_LINT := $(TOOLS)/golangci-lint-$(GOLANGCI_LINT_VERSION)
GOFUMPT := $(TOOLS)/gofumpt-$(GOFUMPT_VERSION)
ACTIONLINT := $(TOOLS)/actionlint-$(ACTIONLINT_VERSION)
# The scripts: what has the shell on its first line.
SCRIPTS = $(shell grep -lE '^\#!(/usr/bin/env bash|/bin/sh)' .ci/* test/* 2>/dev/null)

.PHONY: lint
lint: $(GOLANGCI_LINT) $(GOFUMPT) $(ACTIONLINT) | deps ## check the style of Go, C, shell and workflows
	@echo "clang-format"; clang-format --dry-run --Werror $(C_SOURCES)
	@echo "gofumpt"; files=$$($(GOFUMPT) -l bench cmd internal test); \
	[ -z "$$files" ] || { echo "not formatted by gofumpt:"; echo "$$files"; exit 1; } >&2
	@echo "go mod tidy"; for module in . $(MODULES); do go -C $$module mod tidy -diff || exit 1; done
	@echo "golangci-lint"; export CGO_ENABLED=0 GOFLAGS=-trimpath; $(GOLANGCI_LINT) run ./...; \
	for module in $(MODULES); do (cd $$module && $(GOLANGCI_LINT) run ./...) || exit 1; done
	@echo "shellcheck"; shellcheck $(SCRIPTS)
	@echo "actionlint"; $(ACTIONLINT)
	@echo "lint: clean"

.PHONY: format
format: $(GOLANGCI_LINT) | deps ## format Go and C
	@$(GOLANGCI_LINT) fmt ./...
	@clang-format -i $(C_SOURCES)

.PHONY: clean
clean: ## remove what was built
	@rm -rf $(BUILD) $(LAYOUT)/blobs $(LAYOUT)/index.json $(LAYOUT)/oci-layout
