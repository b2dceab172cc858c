#!/usr/bin/env bash
# Rolls an overlay out and waits until it is there: k8s/rollout.sh dev, k8s/rollout.sh prod.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
overlay=overlays/${1:?"which overlay: dev or prod"}

# The files win over what `rollout undo` or `patch` left: those fields belong to another manager then.
apply() { kubectl apply --server-side --force-conflicts "$@"; }
migrations() { kubectl -n dinemesh "$@" -l app.kubernetes.io/component=migrations; }

# The shape is seen by the shell; whether it can be read says a Python, where there is one.
is_json() { ! command -v python3 > /dev/null || python3 -m json.tool "$1" > /dev/null 2>&1; }

keys=$overlay/keys/jwks.json
wrong=
case "$(tr -d '[:space:]' < "$keys")" in
    *'"kid":"nobody"'*) wrong="the key that ships, which nobody has: put in those that tokens are signed with" ;;
    *'"d":'*) wrong="private parts of keys, and everybody would see them: put in the public ones alone" ;;
    '{"keys":[{'*'"kty":'*'}]}') is_json "$keys" || wrong="what is no JSON" ;;
    *) wrong="no keys: a JSON Web Key Set is wanted, {\"keys\": [{...}]}" ;;
esac
[ -z "$wrong" ] || { echo "k8s/$keys holds $wrong" >&2; exit 1; }

apply -f base/namespace.yaml
if [ -d "$overlay/migrations" ]; then
    # The schema first: the old pods go on with the new one, the new pods wait for it. A Job cannot be changed.
    migrations delete jobs --ignore-not-found
    apply -k "$overlay/migrations"
    # Each ends within 10 minutes by itself. `wait` knows one condition only, and would not notice that one has failed.
    until migrations wait jobs --for=condition=Complete --timeout=5s 2> /dev/null; do
        conditions=$(migrations get jobs -o 'jsonpath={.items[*].status.conditions[*].type}')
        if grep -qw Failed <<< "$conditions"; then
            echo "a migration has failed; no pod was changed. What they said:" >&2
            migrations logs --prefix --tail=50 >&2
            exit 1
        elif [ "$SECONDS" -gt 660 ]; then
            echo "the migrations neither end nor fail; no pod was changed" >&2
            exit 1
        fi
    done
fi
apply -k "$overlay"
for service in reservation deposit history restaurant; do
    kubectl -n dinemesh rollout status "deployment/$service" --timeout=5m
done
