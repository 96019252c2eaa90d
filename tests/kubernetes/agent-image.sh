#!/usr/bin/env bash
# Makes an image of the programs that were built and of what they start, out of this machine's: controller/deploy/Containerfile needs a registry.
# usage: agent-image.sh PROGRAMS ARCHIVE REFERENCE     PROGRAMS: the directory of bulkhead and bulkhead-cni
set -euo pipefail
programs=${1:?} archive=$(realpath "${2:?}") reference=${3:?}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
root=$work/root
mkdir -p "$root/usr/local/bin" "$root/usr/sbin" "$work/archive"

# libraries PROGRAM...: and the loader.
libraries() { ldd "$@" | grep --only-matching '/[^ ]*\.so[^ ]*' | sort -u; }

for program in bulkhead bulkhead-cni; do
  # Without what debuggers want, which is most of it.
  strip -o "$root/usr/local/bin/$program" "$programs/$program"
done
for tool in nft iptables-nft-save ip6tables-nft-save nsenter sleep; do
  cp --dereference "$(PATH=$PATH:/usr/sbin command -v "$tool")" "$root/usr/sbin/$tool"
done
# What iptables-save shows of extensions.
extensions=$(find /usr/lib /usr/lib64 -maxdepth 2 -type d -name xtables -print -quit 2>/dev/null)
mapfile -t needed < <(libraries "$root"/usr/local/bin/* "$root"/usr/sbin/*)
cp --dereference --parents "${needed[@]}" "$root/"
cp --recursive --parents "$extensions" "$root/"

tar --create --file "$work/archive/layer.tar" --directory "$root" --owner=0 --group=0 --numeric-owner .
layer=$(sha256sum "$work/archive/layer.tar" | cut -d ' ' -f 1)
machine=$(uname -m)
case $machine in x86_64) machine=amd64 ;; aarch64) machine=arm64 ;; esac
printf '{"architecture":"%s","os":"linux","config":{"Env":["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]},"rootfs":{"type":"layers","diff_ids":["sha256:%s"]}}' \
  "$machine" "$layer" >"$work/archive/config.json"
printf '[{"Config":"config.json","RepoTags":["%s"],"Layers":["layer.tar"]}]' "$reference" >"$work/archive/manifest.json"
tar --create --file "$archive" --directory "$work/archive" .
