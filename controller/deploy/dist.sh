#!/usr/bin/env bash
# Makes the tarball that a node is installed from, and tries it: `make dist` calls it. The same commit gives the same files.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

target=$(uname -m)-unknown-linux-musl
version=$(sed -n 's/^version = "\(.*\)"$/\1/p' Cargo.toml | head -n 1)
name=bulkhead-$version-linux-$(uname -m)
dist=${CARGO_TARGET_DIR:-target}/dist
stage=$dist/$name

rm -rf "$dist"
mkdir -p "$stage"
controller/deploy/programs.sh "$stage"
# Where they are in the tree, since texts name them so.
cp --parents --recursive README.md ARCHITECTURE.md CONTRIBUTING.md bench/README.md bench/policy.svg LICENSE-APACHE dataplane-ebpf/LICENSE-MIT \
  dataplane-ebpf/LICENSE-GPL-2.0 controller/deploy/*.service controller/deploy/grafana controller/deploy/kubernetes policy-examples "$stage/"
# Of the commit, so that files and list are the same each time.
SOURCE_DATE_EPOCH=$(git log -1 --format=%ct)
export SOURCE_DATE_EPOCH
# What the two programs are made of, by crate: the controller depends on the other one.
cargo cyclonedx --manifest-path controller/Cargo.toml --format json --target "$target" --override-filename bulkhead.cdx --quiet
mv controller/bulkhead.cdx.json "$stage/bulkhead.cdx.json"
# Other packages of the workspace got one too.
git clean --force --quiet -- '*bulkhead.cdx.json'
sums=$(cd "$stage" && find . -type f -printf '%P\n' | LC_ALL=C sort | xargs sha256sum)
echo "$sums" >"$stage/SHA256SUMS"
tar --create --directory "$dist" --sort=name --owner=0 --group=0 --numeric-owner --mtime="@$SOURCE_DATE_EPOCH" --mode=u+w,go-w "$name" |
  gzip --no-name --best >"$dist/$name.tar.gz"

# As somebody does who has nothing else.
try=$(mktemp --directory)
trap 'rm -rf "$try"' EXIT
tar --extract --gzip --directory "$try" --file "$dist/$name.tar.gz"
(cd "$try/$name" && sha256sum --check --quiet SHA256SUMS)
# What a text leads to is there.
find "$try/$name" -name '*.md' | while read -r text; do
  { grep --only-matching --perl-regexp '\]\((?!https?:|#)\K[^)#]+' "$text" || [ $? -eq 1 ]; } | sort --unique | while read -r link; do
    [ -f "$(dirname "$text")/$link" ] || { echo "dist: ${text#"$try/$name/"} leads to $link, which is not there" && exit 1; }
  done
done
env --ignore-environment "$try/$name/bulkhead" --version
env --ignore-environment CNI_COMMAND=VERSION "$try/$name/bulkhead-cni" </dev/null
echo
env --ignore-environment "$try/$name/bulkhead" simulate "$try/$name/policy-examples/shop.yaml" "$try/$name/policy-examples/shop-workloads.yaml" >/dev/null
(cd "$dist" && sha256sum "$name.tar.gz" | tee "$name.tar.gz.sha256")
ls -l --human-readable "$dist/$name.tar.gz"
