#!/usr/bin/env bash
# Makes the plain manifests out of the chart. Needs helm.
# usage: render.sh [--check]     --check: writes nothing, and says what differs
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

if [ "${1:-}" = --check ] && [ "${BULKHEAD_REQUIRE_ALL:-}" != 1 ] && ! command -v helm >/dev/null; then
  echo 'render: no helm, so it was left out whether the plain manifests are what the chart says'
  exit
fi

# render NAME OPTION...: one manifest.
render() {
  local file=$1.yaml
  shift
  {
    echo '# Made by render.sh out of the chart: change that instead.'
    if [ "$file" != crds.yaml ]; then
      namespace
    fi
    helm template bulkhead chart --kube-version "$kubernetes" --namespace bulkhead-system "$@"
  } >"$out/$file"
}

# What `helm install --create-namespace` makes, and the label that lets the agents' pods have the node's network and paths.
namespace() {
  cat <<'END'
---
# Of its own: agents may write all Leases here.
apiVersion: v1
kind: Namespace
metadata:
  name: bulkhead-system
  labels:
    pod-security.kubernetes.io/enforce: privileged
END
}

# A helm that is built by `go install` takes the cluster for an old one, unless told.
kubernetes=1.34.0
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
# In a file of its own: whoever deletes the others keeps what people wrote.
render crds --show-only templates/crds.yaml
render bulkhead --set crds=false
render enforce --set crds=false --set observe=false
render uninstall --set crds=false --set uninstall=true
helm lint --quiet --kube-version "$kubernetes" chart
# What values turn on has to be rendered somewhere.
helm template bulkhead chart --kube-version "$kubernetes" --set bpffs.mount=true --set serviceMonitor.enabled=true --set metrics.address=0.0.0.0 --set 'cni.exempt={kube-system}' \
  --set 'agent.args={--xdp=generic}' --set apiServer.host=192.0.2.1 --set apiServer.port=6443 --set serviceMonitor.labels.release=prometheus --set startupTaint=bulkhead.io/starting >/dev/null
helm template bulkhead chart --kube-version "$kubernetes" --set cni.runtime=k3s >"$out/k3s"
for directory in /var/lib/rancher/k3s/agent/etc/cni/net.d /var/lib/rancher/k3s/data/cni; do
  grep --quiet "path: $directory," "$out/k3s" || { echo "render: with cni.runtime=k3s nothing has $directory" && exit 1; }
done
for address in 127.0.0.1 :: ::1 '[::]' fd00::9; do
  helm template bulkhead chart --kube-version "$kubernetes" --set "metrics.address=$address" >/dev/null
done
# Values that are misspelt, unknown, of another type or out of range are refused.
for value in cni.runtim=k3s cni.runtime=podman image.tag=20261129 cni.timeoutSeconds=301 metrics.address=localhost; do
  if helm template bulkhead chart --kube-version "$kubernetes" --set "$value" >"$out/refused" 2>&1 || ! grep --quiet schema "$out/refused"; then
    cat "$out/refused" && echo "render: --set $value is not refused by the chart's schema" && exit 1
  fi
done
for file in crds bulkhead enforce uninstall; do
  if [ "${1:-}" = --check ]; then
    diff --unified "$file.yaml" "$out/$file.yaml"
  else
    cp "$out/$file.yaml" .
  fi
done
