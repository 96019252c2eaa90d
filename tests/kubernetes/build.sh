#!/usr/bin/env bash
# Builds a Kubernetes with flannel out of the Go module beside it, the images of its pods, and others that enforce policies: for tests/cluster. Called by
# tests/setup/setup.sh.
# usage: build.sh DIRECTORY     done once, unless something here changes: DIRECTORY/stamp, written last, says what was built
#        build.sh --stamp       prints what it would say
set -euo pipefail
source=$(realpath "$(dirname "${BASH_SOURCE[0]}")")

stamp() { (cd "$source" && sha256sum go.mod go.sum build.sh coredns/main.go); }

if [ "${1:?usage: build.sh DIRECTORY}" = --stamp ]; then
  stamp
  exit
fi
mkdir -p "$1"
directory=$(realpath "$1")
rm -f "$directory/stamp"
cd "$source"

# --- programs -------------------------------------------------------------------------------------------------------

# What is built is what go.sum says, byte for byte; no other answer is asked for.
export GOFLAGS="-mod=readonly -trimpath -buildvcs=false"
# Without C all are static, as those in images have to be, and share what they have in common.
export CGO_ENABLED=0
flags='-s -w'

# programs: of the module's tools those that are programs; flannel has parts in C, and the suite of tests is built as such.
programs() { go list -f '{{if eq .Name "main"}}{{.ImportPath}}{{end}}' tool | grep -v '/flannel$'; }

mapfile -t packages < <(programs)
go build -ldflags "$flags" -o "$directory/" "${packages[@]}" ./coredns
mv "$directory/server" "$directory/etcd"
mv "$directory/cmd" "$directory/kube-network-policies"
CGO_ENABLED=1 go build -ldflags "$flags" -o "$directory/flanneld" github.com/flannel-io/flannel
go test -c -ldflags "$flags" -o "$directory/e2e.test" k8s.io/kubernetes/test/e2e

# --- images ---------------------------------------------------------------------------------------------------------

work=$(mktemp -d "$directory/images.XXXXXX")
trap 'rm -rf "$work"' EXIT

begin_archive() {
  archive=$work/archive
  mkdir "$archive"
  manifests=()
}

# end_archive NAME: puts the images since its beginning into DIRECTORY/NAME.tar.
end_archive() {
  (IFS=,; printf '[%s]' "${manifests[*]}") >"$archive/manifest.json"
  tar --create --file "$directory/$1.tar" --directory "$archive" .
  rm -r "$archive"
}

# image PROGRAM COMMAND REFERENCE...: an image of one layer with the program and busybox. COMMAND is JSON.
image() {
  local program=$1 command=$2 root=$work/$1 layer applet references
  shift 2
  mkdir -p "$root/bin" "$root/etc" "$root/tmp"
  cp "$directory/$program" "$root/$program"
  cp "$(command -v busybox)" "$root/bin/busybox"
  for applet in cat env ip ls nc nslookup ping sh sleep wget; do ln -s busybox "$root/bin/$applet"; done
  tar --create --file "$archive/$program.tar" --directory "$root" --sort=name --owner=0 --group=0 --numeric-owner --mtime=@0 .
  layer=$(sha256sum "$archive/$program.tar" | cut -d ' ' -f 1)
  printf '{"architecture":"%s","os":"linux","config":{"Entrypoint":["/%s"],"Cmd":%s,"Env":["PATH=/bin:/"]},"rootfs":{"type":"layers","diff_ids":["sha256:%s"]}}' \
    "$(go env GOARCH)" "$program" "$command" "$layer" >"$archive/$program.json"
  references=$(printf ',"%s"' "$@")
  manifests+=("$(printf '{"Config":"%s.json","RepoTags":[%s],"Layers":["%s.tar"]}' "$program" "${references:1}" "$program")")
}

begin_archive
# The names that Kubernetes' own tests ask for; `agnhost pause` does what the image for pods' namespaces has to.
image agnhost '["pause"]' registry.k8s.io/e2e-test-images/agnhost:2.56 registry.k8s.io/pause:3.10
image coredns null bulkhead.test/coredns:latest
end_archive images

# Not every cluster has this one.
begin_archive
image kube-network-policies null bulkhead.test/kube-network-policies:latest
end_archive kube-network-policies

stamp >"$directory/stamp.new"
mv "$directory/stamp.new" "$directory/stamp"
