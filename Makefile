# Every target works on a fresh checkout: it makes what it needs first. `make` alone lists them.
# Settings go on the command line, `make up RESERVATION_PORT=9000`, or into the environment with DINEMESH_ in front.

PYTHON ?= python3
BOOTSTRAP = $(PYTHON) -I local_mesh/bootstrap.py
# What runs stays in the environment that it was started from, when .venv leads to another one.
BIN = $$(readlink -f .venv/bin)
MESH = $(BIN)/python -m local_mesh

# Nothing outside this folder is changed.
export BUF_CACHE_DIR := $(CURDIR)/.cache/buf

.DEFAULT_GOAL := help
.SILENT:
MAKEFLAGS += --no-print-directory

RUNTIME_TARGETS := demo up down status logs stop start page address settings edge-config policy-config token \
	audit pending dead-letters redrive replay rebuild-history retry-refund lift-refund-block \
	let-lapse
.PHONY: help runtime dev test quick torture guards rolling check format generate contracts clients openapi bench tools load \
	mesh-truth mesh-goldens cluster-truth cluster-render lock $(RUNTIME_TARGETS)

help:
	grep -hE '^#\? ' Makefile | sed 's/^#? //'

#? make demo                        a story over the running mesh: book, modify, cancel, see everything
#? make up [DEPOSITS=2]             start the mesh and wait until it is healthy; the edge is at http://127.0.0.1:8080
#? make down                        stop it and leave no process behind; its data stays in .local
#? make status                      one line per part
#? make logs [SERVICE=deposit]      follow the logs, of all parts or of one
#? make stop SERVICE=deposit        take one part away
#? make start SERVICE=deposit       bring it back
#? make page [PAGE_PORT=8000]       the example page, which books through the edge
#? make address [SERVICE=edge]      print where a part answers, and nothing else
#? make token SUB=alice ROLE=customer
#?                                  print one token; also ROLE=staff RESTAURANT=<id>, ROLE=operator
#? make settings                    every setting: what it is now, its default, its unit, and what it means
#? make edge-config                 what Envoy is told, put together out of envoy/ and the settings
#? make policy-config               the same of the proxy between reservation and deposit
#? make audit                       hold the books of all services against each other (read-only)
#? make dead-letters                list the messages that a subscriber could not take
#? make redrive QUEUE=name           give them to it again; QUEUE=all: of every queue
#? make pending                     list what waits longer than it may, each with what to do next
#? make retry-refund DEPOSIT=id     try refunds again which the provider had refused for good
#? make lift-refund-block DEPOSIT=id
#?                                  the sandbox's switch: refunds that it blocks (tok_refundFail) go through again;
#?                                  DEPOSIT=all: of every deposit
#? make let-lapse UNTIL=time        the clock is right: bookings that were held back may end; `make pending` has the time
#? make replay SERVICE=deposit      publish the events of a service again, after the loss of a broker; SERVICE=all
#? make rebuild-history             make the timeline anew from the events that history has kept, and from the log
$(RUNTIME_TARGETS): runtime
	$(MESH) $@

#? make test [ARGS='-k words']      all tests; what was made up out of a seed and a day is told at the end
# Two workers: half of a test is waiting. `WORKERS=0` runs them one after the other in one process.
WORKERS ?= 2
test: dev
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadscope --no-loadscope-reorder $(ARGS)

#? make quick [ARGS='-k words']     what one runs while writing: without broker, PostgreSQL and Envoy
quick: dev
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadscope --quick -q $(ARGS) tests

#? make torture [SECONDS=600] [SEED=n] [ENGINE=postgresql] [FAULTS=full_disk,...]
#?                                  a death at every crash point; then clients and faults out of one seed; then the books
SECONDS ?= 600
ENGINE ?= sqlite
torture: dev
	$(BIN)/python -m tests.crash --all
	$(BIN)/python -m pytest -q -rP tests/torture/long_runs.py
	$(BIN)/python -m pytest -q tests/machines --hypothesis-profile=torture --timeout 3600
	$(BIN)/python -m tests.torture --seconds $(SECONDS) --engine $(ENGINE) $(if $(SEED),--seed $(SEED)) \
		$(if $(FAULTS),--faults $(FAULTS))

#? make guards [ARGS='NAME ...']    take each safeguard away, and see its test fail
guards: dev
	$(BIN)/python -m tests.guards $(ARGS)

#? make rolling [ROUNDS=5]          replace each service by a second instance, under load through the edge
ROUNDS ?= 5
rolling: dev
	$(BIN)/python -m tests.rolling --rounds $(ROUNDS)

#? make check                       form, lint, types, layers, contracts
check: dev
	echo "format"    && $(BIN)/ruff format --check .
	echo "lint"      && $(BIN)/ruff check .
	echo "types"     && $(BIN)/mypy
	echo "layers"    && $(BIN)/lint-imports
	echo "contracts" && $(BIN)/python -m protos.check

#? make format                      put the code into form
format: dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

#? make generate                    Python code, protos/openapi.json, the edge's shapes of bodies and istio/edge out of protos/ and envoy/
generate: dev
	$(BIN)/python -m protos.generate
	$(BIN)/python -m protos.openapi
	$(BIN)/python -m protos.bodies
	$(BIN)/python -m istio.generate

#? make contracts [INTO=folder]    the contracts with all that they import, for the tools of any language: build/contracts
INTO ?= build/contracts
contracts: dev
	$(BIN)/python -m protos.export $(INTO)

#? make clients [ARGS='-k Go']     docs/CLIENTS.md in every language, each against the edge of a mesh (needs Go, Rust, Java, Node)
clients: dev
	$(BIN)/python -m pytest -p no:cacheprovider -v tests/edge/clients.py $(ARGS)

#? make openapi                     protos/openapi.json alone
openapi: dev
	$(BIN)/python -m protos.openapi

#? make bench [ARGS='--rounds 1']   what a reservation costs beside a plain echo and two plain hops (docs/BENCHMARKS.md)
bench: dev
	$(BIN)/python -m benchmarks.mesh $(ARGS)

#? make tools                       build ghz and grpcurl into .cache/tools (needs Go)
tools: runtime
	$(BIN)/python -m local_mesh.tools

#? make load [IN_FLIGHT='20 100 400']
#?                                  ghz on a mesh of its own: each call directly and through the edge (needs Go)
IN_FLIGHT ?= 20 100 400
load: runtime
	$(BIN)/python -m benchmarks.load --in-flight $(IN_FLIGHT)

#? make mesh-truth                  what Istio's own code and real Envoys make of istio/ and k8s/ (needs Go; compiles istiod the first time)
mesh-truth: dev
	$(BIN)/python -m tests.mesh_truth $(ARGS)

#? make mesh-goldens                write tests/istio/goldens anew, after a change of istio/ or k8s/base (needs Go)
mesh-goldens: dev
	$(BIN)/python -m tests.mesh_truth --update

#? make cluster-truth               what a real API server and its controllers make of k8s/ (needs Go; builds Kubernetes the first time)
cluster-truth: dev
	$(BIN)/python -m pytest -p no:cacheprovider -s tests/cluster_truth/truths.py

#? make cluster-render              kustomize over k8s/, for the tests that look at the result (needs Go)
cluster-render: dev
	$(BIN)/python -m tests.cluster_truth.render

#? make lock                        choose versions anew, out of pyproject.toml
COMPILE = CUSTOM_COMPILE_COMMAND='make lock' $(BIN)/pip-compile --quiet --upgrade --generate-hashes --allow-unsafe \
	--strip-extras --no-emit-index-url --no-emit-trusted-host --no-emit-find-links --no-emit-options \
	--annotation-style=line pyproject.toml
lock: dev
	$(COMPILE) -o requirements/runtime.txt
	$(COMPILE) --extra dev -c requirements/runtime.txt -o requirements/dev.txt

runtime:
	$(BOOTSTRAP) runtime

dev:
	$(BOOTSTRAP) dev
