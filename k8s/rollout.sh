#!/usr/bin/env bash
# Rolls an overlay out and waits until it is there: k8s/rollout.sh dev, k8s/rollout.sh prod.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
overlay=overlays/${1:?"which overlay: dev or prod"}

kubectl apply --server-side -f base/namespace.yaml
if [ -d "$overlay/migrations" ]; then
    # The schema first: the old pods go on with the new one, the new pods wait for it. A Job cannot be changed.
    kubectl -n dinemesh delete jobs -l app.kubernetes.io/component=migrations --ignore-not-found
    kubectl apply --server-side -k "$overlay/migrations"
    kubectl -n dinemesh wait jobs -l app.kubernetes.io/component=migrations --for=condition=Complete --timeout=11m
fi
kubectl apply --server-side -k "$overlay"
for service in reservation deposit history restaurant; do
    kubectl -n dinemesh rollout status "deployment/$service" --timeout=5m
done
