# SPDX-License-Identifier: Apache-2.0
#
# make run    build the gadget and watch real traffic with it
# make test   pass the tests
# make help   the other targets

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

IMAGE ?= network:latest
# where the image is compiled: auto, container (IG's builder image) or local (clang)
BUILDER ?= auto
# the image's date: that of the last commit, so that a build can be repeated
SOURCE_DATE_EPOCH ?= $(shell git log -1 --format=%ct 2>/dev/null || echo 0)
export SOURCE_DATE_EPOCH

IG_MODULE := github.com/inspektor-gadget/inspektor-gadget
IG_VERSION := $(shell awk '$$1 == "$(IG_MODULE)" { print $$2 }' go.mod)
SUDO := $(if $(filter 0,$(shell id -u)),,sudo)

BUILD := $(CURDIR)/build
INCLUDE := $(BUILD)/include
LAYOUT := internal/gadget/image/layout
KERNELS := $(BUILD)/kernels
# The user's own ig serves when it has the version of the library.
IG := $(shell ig version 2>/dev/null | grep -qx '$(IG_VERSION)' && command -v ig || echo $(BUILD)/ig)

GADGET_SOURCES := program.bpf.c program.h gadget.yaml $(wildcard ebpf/*.h)

.PHONY: help
help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

# --- what the machine needs ---------------------------------------------------

# Installs the packages of $(1) whose command $(2) is missing.
.PHONY: deps
deps: ## install the Debian or Ubuntu packages that are missing
	@test/install-packages packages.txt

$(BUILD):
	@mkdir -p $@

# --- the gadget image ---------------------------------------------------------

$(BUILD)/ig: go.mod go.sum | $(BUILD)
	@echo "building ig $(IG_VERSION) (2 to 4 minutes the first time)"
	@CGO_ENABLED=0 go build -trimpath -o $@ \
		-ldflags '-s -w -X $(IG_MODULE)/internal/version.version=$(IG_VERSION)' \
		$(IG_MODULE)/cmd/ig

# One include path for both architectures: ig's own is outside of the tree, and
# each architecture has a vmlinux.h of its own.
$(INCLUDE)/vmlinux.h: go.mod | $(BUILD)
	@mkdir -p $(INCLUDE)
	@ln -sfn "$$(go list -m -f '{{.Dir}}' $(IG_MODULE))/include/gadget" $(INCLUDE)/gadget
	@printf '%s\n' '#if defined(__TARGET_ARCH_x86)' '#include <gadget/amd64/vmlinux.h>' \
		'#elif defined(__TARGET_ARCH_arm64)' '#include <gadget/arm64/vmlinux.h>' \
		'#else' '#error "no vmlinux.h for this architecture"' '#endif' > $@

.PHONY: image
image: $(BUILD)/image.stamp ## build the gadget image into ig's store and into netgadget

$(BUILD)/image.stamp: $(GADGET_SOURCES) $(IG) $(INCLUDE)/vmlinux.h | deps
	@$(if $(SUDO),echo "asking for root: ig keeps images in /var/lib/ig";) \
	SUDO='$(SUDO)' IG='$(IG)' IG_VERSION='$(IG_VERSION)' INCLUDE='$(INCLUDE)' \
		test/build-image $(BUILDER) $(IMAGE) $(CURDIR)
	@$(SUDO) $(IG) image export $(IMAGE) $(BUILD)/network.tar >/dev/null
	@$(if $(SUDO),$(SUDO) chown "$$(id -u):$$(id -g)" $(BUILD)/network.tar;) \
	rm -rf $(LAYOUT)/blobs $(LAYOUT)/index.json $(LAYOUT)/oci-layout; \
	tar -xf $(BUILD)/network.tar -C $(LAYOUT)
	@touch $@

$(BUILD)/netgadget: $(BUILD)/image.stamp FORCE
	@CGO_ENABLED=0 go build -trimpath -o $@ ./cmd/netgadget

FORCE:

.PHONY: build
build: $(BUILD)/netgadget ## build the gadget image and netgadget

.PHONY: clean
clean: ## remove what was built, but not the downloaded kernels
	@find $(BUILD) -mindepth 1 -maxdepth 1 ! -name kernels -exec rm -rf {} + 2>/dev/null || true
	@rm -rf $(LAYOUT)/blobs $(LAYOUT)/index.json $(LAYOUT)/oci-layout
