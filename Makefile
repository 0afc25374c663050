# The two commands: `make up` (a cloud with a guest on this machine) and `make test`.
SHELL := /bin/bash
export PATH := $(PATH):$(HOME)/.cargo/bin
STATE ?= ./allod-state
RELEASE := $(or $(CARGO_TARGET_DIR),target)/release/allod

.PHONY: up down test tools identity domain-manager federation frontend middleware sidebyside certify-parity certify-guest registry-parity probe fleet partitions replicas bench storm bench-identity clean build docs

up: ## from an empty machine to a virtual machine that answers SSH through its floating IP
	scripts/setup build run
	cargo build --release --locked -p allod
	scripts/first-cloud $(RELEASE) $(STATE)

down: ## stop the cloud of `make up` and remove everything it made
	$(RELEASE) down --state $(STATE) --purge

build:
	cargo build --release --locked -p allod

test: ## everything: tidy, format, lints, unit and service tests, real QEMU, OVN, PostgreSQL, unmodified clients
	scripts/setup build run test
	scripts/test

identity: ## the unmodified tempest.api.identity against a cloud of its own; what passes is in conformance/tempest-identity.txt
	scripts/setup build run test
	cargo build --release --locked -p allod
	.venv/bin/python conformance/identity.py $(RELEASE) --jobs $$(nproc)

domain-manager: ## what a manager of a domain may and may not: the check of scs-0302
	cargo build --release --locked -p allod
	conformance/domainmanager.py $(RELEASE)

federation: ## two clouds and the unmodified client: users of the first work in the second, by each OpenID Connect way of keystoneauth
	scripts/setup build run
	cargo build --release --locked -p allod
	conformance/federation.py $(RELEASE) .venv/bin

frontend: ## a real Apache in front: SAML by mod_shib, Kerberos by mod_auth_gssapi, the unmodified keystoneauth, forgeries and replays
	scripts/setup build run test
	cargo build --release --locked -p allod
	conformance/frontend.py $(RELEASE) .venv/bin

middleware: ## the unmodified Python services glance and placement (PyPI, keystonemiddleware) against Allod's identity alone
	scripts/setup build run
	cargo build --release --locked -p allod
	conformance/middleware.py $(RELEASE)

sidebyside: ## a real Keystone (PyPI) and Allod on its imported database: each validates the other's tokens, Fernet and JWS, of every form; SAML of both
	scripts/setup run test
	cargo build --release --locked -p allod
	python3 conformance/keystone_sidebyside.py $(RELEASE)

STANDARDS ?=
certify-parity: ## allod certify and upstream's unmodified scripts against Allod and against clouds and clusters broken in one place: the same verdicts
	scripts/setup build run test
	cargo build --release --locked -p allod
	cargo build --release --locked -p certify --example stubcloud --example stubcluster
	conformance/certify.py $(RELEASE) --server $(RELEASE) --stub $(dir $(RELEASE))examples/stubcloud \
	  --clusters $(dir $(RELEASE))examples/stubcluster --admin allod-admin --monitor --kills 20 $(if $(STANDARDS),--standards $(STANDARDS))

tools: ## the programs that judge any cloud and their agent for guests, static (musl), in target/tools
	scripts/setup build tools
	scripts/tools target/tools

CLOUD ?=
certify-guest: ## scs-0101 with a guest that boots: a cloud of its own, and upstream's scripts beside; or that of CLOUD=./allod-state, which make up started
	scripts/setup build run
	cargo build --release --locked -p allod
	scripts/test debian-image
	.venv/bin/python conformance/guest.py $(RELEASE) $(dir $(RELEASE))../allod-debian.qcow2 $(if $(CLOUD),--state $(CLOUD),--upstream)

registry-parity: ## the same reports to upstream's compliance monitor and to allod registry, the same answers
	scripts/setup build run test
	cargo build --release --locked -p allod
	conformance/registry.py $(RELEASE) $(if $(STANDARDS),--standards $(STANDARDS))

KILLED ?= 8
probe: ## allod probe against Allod: kill -9 at each step KILLED times, and a whole iteration on QEMU guests and OVN
	scripts/setup build run
	cargo build --release --locked -p allod
	scripts/test probe-agent mini-image
	.venv/bin/python conformance/probe.py $(RELEASE) --agent $(dir $(RELEASE))allod-probe-agent --image $(dir $(RELEASE))../allod-mini.qcow2 --kills $(KILLED)

SEEDS ?= 20
HOSTS ?= 1000
MINUTES ?= 60
fleet: ## the long simulation: SEEDS seeds of HOSTS hosts for MINUTES virtual minutes (docs/simulate.md)
	cargo build --release --locked -p allod
	$(RELEASE) simulate --hosts $(HOSTS) --seeds $(SEEDS) --minutes $(MINUTES) --jobs $$(nproc) --quiet

KILLS ?= 24
replicas: ## the long run of replicas: KILLS kills, one every five seconds, then PostgreSQL restarts; release build (docs/benchmarks.md)
	cargo build --release --locked -p allod
	ALLOD_TEST_BINARY=$(abspath $(RELEASE)) ALLOD_TEST_KILLS=$(KILLS) cargo test --locked -p allod --test it -- \
	  --exact replicas::three_replicas_lose_nothing_whatever_falls --nocapture

N ?= 100000
partitions: ## N random schedules of partitions in virtual time: no server runs twice (docs/simulate.md)
	TMPDIR=$${TMPDIR:-/dev/shm} ALLOD_PARTITIONS=$(N) cargo test --release --locked -p compute --test it partitions -- --nocapture --test-threads 1

bench: ## figures against the recorded peer (docs/benchmarks.md)
	scripts/setup build run test
	cargo build --release --locked -p allod
	bench/run $(RELEASE)

SERVERS ?= 50000
DATABASE ?= sqlite
storm: ## a boot storm: SERVERS servers on HOSTS simulated hosts, then a drain of a tenth of the hosts and a restart (docs/benchmarks.md)
	scripts/setup build run test
	cargo build --release --locked -p allod
	bench/storm.py $(RELEASE) --hosts $(HOSTS) --servers $(SERVERS) --database $(DATABASE) --out bench

USERS ?= 100000
bench-identity: ## identity at size: a Keystone of USERS users is imported, listed and logged in to, beside a Python Keystone (docs/benchmarks.md)
	scripts/setup build test
	cargo build --release --locked -p allod
	bench/identity.py $(RELEASE) --users $(USERS) --database $(DATABASE) --keystone

clean:
	cargo clean
	rm -rf .venv .venv-services docs/book
