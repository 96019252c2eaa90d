#!/usr/bin/env bash
# Builds the programs so that they start whatever libraries a node has: the plugin runs on the node itself, also where an image brought it there.
# usage: programs.sh DIRECTORY     bulkhead and bulkhead-cni are put there; CARGO_FLAGS as for make
set -euo pipefail
directory=$(realpath "${1:?usage: programs.sh DIRECTORY}")
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

read -r -a flags <<<"${CARGO_FLAGS:-}"
target=$(uname -m)-unknown-linux-musl
# Stripped below. By an option, since the build of the eBPF half would inherit a variable.
cargo build --release --target "$target" --config profile.release.debug=false "${flags[@]}" --package bulkhead-controller --package bulkhead-dataplane --bins
for program in bulkhead bulkhead-cni; do
  built=${CARGO_TARGET_DIR:-target}/$target/release/$program
  if readelf --dynamic "$built" | grep NEEDED; then
    echo "$program needs libraries of the machine" && exit 1
  fi
  strip -o "$directory/$program" "$built"
done
