#!/usr/bin/env bash
# Makes this machine ready to build, test and demonstrate Bulkhead. `make demo`, `make test` and the others call it.
# It installs only what is missing, says what and why, and says nothing when nothing is missing.
#
# Shown on Debian 12. What is marked "not run in CI" is for machines that have no Debian toolchain.
set -euo pipefail

# The linker of the eBPF half. A newer one is kept.
BPF_LINKER=0.13.0
# Tools of `make lint`.
CARGO_DENY=0.20.2
HELM=3.18.4
TYPOS=1.52.0
# The release of the reference CNI plugins that last had flannel's among them; its own repository went on from there.
FLANNEL_PLUGIN=0.9.1
# Writes the bill of materials of `make dist`.
CARGO_CYCLONEDX=0.5.9
# Builds helm, and the Kubernetes of the tests: what tests/kubernetes/go.mod says.
GO_MIN=1.25

usage() {
  cat <<'USAGE'
usage: tests/setup/setup.sh [--dry-run] [--build] [--lint] [--test] [--lab] [--dist]

With none of them, what `make demo` needs. Several may be given.

  --dry-run  print the steps that are missing, take none of them
  --build    what a build of the image's programs needs, musl too, and no more: the kernel is not asked whether it could run what is built
  --lint     what `make lint` needs too: rustfmt, clippy, shellcheck, cargo-deny, typos, and helm
  --test     what `make test` needs too: the reference CNI plugins, podman, containerd, runc, busybox, conntrack, openssl, ipset, Go, and below
             target/ flannel's CNI plugin, helm, schemathesis in an environment of its own, a Kubernetes (1 GB, and as much of Go's cache) and
             Prometheus' definition of ServiceMonitors
  --lab      what `make lab` needs too: of these the reference CNI plugins, containerd, runc, busybox, conntrack, openssl, Go, flannel's CNI plugin and
             Kubernetes, and helm
  --dist     what `make dist` needs too: musl, which static programs are linked with, and cargo-cyclonedx

environment:
  BULKHEAD_EBPF_TOOLCHAIN  rustup toolchain that builds the eBPF half (it needs the sources of the standard library);
                           else `web` (Debian's own), else `nightly`
USAGE
}

dry_run=false
build=false
lint=false
tests=false
lab=false
dist=false
for argument in "$@"; do
  case $argument in
    --dry-run) dry_run=true ;;
    --build) build=true ;;
    --lint) lint=true ;;
    --test) tests=true ;;
    --lab) lab=true ;;
    --dist) dist=true ;;
    -h | --help) usage; exit 0 ;;
    *) printf 'setup: unknown argument %q\n' "$argument" >&2; usage >&2; exit 2 ;;
  esac
done

cd "$(dirname "${BASH_SOURCE[0]}")/../.."
cargo_bin=${CARGO_HOME:-$HOME/.cargo}/bin
# `cargo install` and a fresh rustup put their programs here; the Makefile does the same.
PATH=$cargo_bin:$PATH:/usr/sbin:/sbin
rust_min=$(sed -n 's/^rust-version = "\(.*\)"$/\1/p' Cargo.toml)
: "${rust_min:?no rust-version in Cargo.toml}"

# A terminal gets cargo's progress bar, a log file not its hundred lines.
quiet=()
[ -t 2 ] || quiet=(--quiet)

problems=()
problem() { problems+=("$1"); }
have() { command -v "$1" >/dev/null; }
is_root() { [ "$(id -u)" -eq 0 ]; }
# at_least HAVE WANT: HAVE is version WANT or later.
at_least() { printf '%s\n%s\n' "$2" "$1" | sort --version-sort --check=quiet; }

# step WHAT WHY COMMAND...: says what is done and why, and does it. A failure is noted, and returned.
step() {
  printf 'setup: %s\n       why: %s\n' "$1" "$2"
  shift 2
  if $dry_run; then
    printf '       would run: %s\n' "$*"
  elif ! "$@"; then
    problem "this failed, its message is above: $*"
    return 1
  fi
}

# root_step, the same for a command that only root may run.
root_step() {
  if is_root || $dry_run; then
    step "$@"
  else
    problem "$1 ($2): not root, so run this yourself or the same make command as root: ${*:3}"
    return 1
  fi
}

# finish: stops here if there are problems, and names them all.
finish() {
  [ ${#problems[@]} -eq 0 ] && return
  printf 'setup: this machine is not ready:\n' >&2
  printf '  - %s\n' "${problems[@]}" >&2
  exit 1
}

# --- packages -------------------------------------------------------------------------------------------------------

apt-get() { DEBIAN_FRONTEND=noninteractive command apt-get -o DPkg::Lock::Timeout=300 -qq "$@" >/dev/null; }

apt_fresh=false
apt_refresh() {
  if ! $apt_fresh && is_root && have apt-cache; then
    apt_fresh=true
    step "apt-get update" "something is missing, and the newest packages are wanted" apt-get update || true
  fi
}

# Version that apt would install, without epoch; empty if there is none.
apt_candidate() {
  have apt-cache || return 0
  LC_ALL=C apt-cache policy "$1" | sed -n 's/^  Candidate: \([0-9]*:\)\?\([0-9][^ ]*\)$/\2/p'
}

# install WHY PACKAGE...: installs the packages that are not there. Removes and downgrades nothing.
install() {
  local why=$1 package missing=()
  shift
  for package in "$@"; do
    dpkg-query --show --showformat='${db:Status-Status}' "$package" 2>&1 | grep -qx installed || missing+=("$package")
  done
  [ ${#missing[@]} -eq 0 ] && return
  if ! have apt-get; then
    problem "no apt-get here: install what Debian calls ${missing[*]} ($why)"
    return 1
  fi
  apt_refresh
  root_step "install ${missing[*]}" "$why" apt-get install --yes --no-install-recommends --no-remove "${missing[@]}"
}

# install_for COMMAND PACKAGE WHY: asks for the command, so that one from elsewhere is as good.
install_for() { have "$1" || install "$3" "$2" || true; }

base_packages() {
  install_for cc build-essential "linker and libc for Rust programs, make"
  [ -e /etc/ssl/certs/ca-certificates.crt ] || install "cargo fetches over TLS" ca-certificates || true
  install_for ip iproute2 "the tests look at links and make network namespaces"
  install_for nft nftables "the input rule that guards the VXLAN port"
  install_for iptables-nft iptables "the tests write rules of others that use packet marks"
  install_for unshare util-linux "set-up and tests enter network namespaces"
  if $tests || $lab; then
    install "the tests call the CNI plugin behind the reference plugins" containernetworking-plugins || true
    install_for runc runc "containers are started with it"
    install_for containerd containerd "the tests start containers with this one too"
    install_for busybox busybox-static "the image of these containers"
    install_for conntrack conntrack "kube-proxy forgets connections with it"
    install_for openssl openssl "makes the keys of the tests' clusters"
  fi
  if $tests; then
    install_for podman podman "the tests start real containers"
    install_for systemd-analyze systemd "a test checks the unit file"
    install_for ipset ipset "kube-router keeps addresses in sets"
  fi
  if $lint; then
    install_for shellcheck shellcheck "make lint checks the shell scripts"
  fi
}

# --- Rust -----------------------------------------------------------------------------------------------------------

# Version of a compiler (given as a command), empty if it does not run.
rust_version() { "$@" --version 2>/dev/null | sed -n 's/^rustc \([0-9.]*\).*/\1/p'; }

rust_is_enough() {
  local version
  have cargo || return 1
  version=$(rust_version rustc)
  [ -n "$version" ] && at_least "$version" "$rust_min"
}

debian_rust_is_enough() {
  local version
  version=$(apt_candidate rustc-web)
  [ -n "$version" ] && at_least "$version" "$rust_min"
}

host_rust() {
  rust_is_enough && return
  if have rustup; then # not run in CI
    step "rustup update stable" "Rust $rust_min or later builds this workspace, the active one is '$(rust_version rustc)'" \
      rustup update --no-self-update stable || true
  else
    apt_refresh
    if debian_rust_is_enough; then
      install "Rust $rust_min or later builds this workspace" rustc-web cargo-web || true
    elif $dry_run; then
      echo "setup: then Rust: Debian's rustc-web and cargo-web where apt-get update finds $rust_min or later, otherwise rustup"
    else # not run in CI
      install_for curl curl "fetches rustup"
      step "install rustup with the stable toolchain into ${cargo_bin%/bin}" \
        "Rust $rust_min or later builds this workspace, and no package here has it" install_rustup || true
    fi
  fi
  if ! $dry_run && ! rust_is_enough; then
    problem "no Rust $rust_min or later: the active toolchain is '$(rust_version rustc)' (see rustup default, rustup override)"
  fi
}

install_rustup() {
  curl --proto '=https' --tlsv1.2 --silent --show-error --fail https://static.rust-lang.org/rustup/rustup-init.sh |
    sh -s -- -y --quiet --profile minimal
}

rust_lint_tools() {
  cargo fmt --version >/dev/null 2>&1 && cargo clippy --version >/dev/null 2>&1 && return
  local why="make lint checks format and lints"
  if have rustup; then
    step "rustup component add rustfmt clippy" "$why" rustup component add rustfmt clippy || true
  else
    install "$why" rustfmt-web rust-web-clippy || true
  fi
}

# --- toolchain of the eBPF half -------------------------------------------------------------------------------------

# With rustup several toolchains live side by side; without it there is only the one in PATH.
ebpf_rustc() {
  if have rustup; then rustup run "$ebpf_toolchain" rustc "$@"; else rustc "$@"; fi
}

# The eBPF target has no compiled core, so the toolchain must carry the sources of its own.
has_rust_src() {
  local root
  ebpf_toolchain=$1
  root=$(ebpf_rustc --print sysroot 2>/dev/null) || return 1
  [ -e "$root/lib/rustlib/src/rust/library/core/Cargo.toml" ] && at_least "$(rust_version ebpf_rustc)" "$rust_min"
}

linked() { rustup toolchain list 2>/dev/null | grep -q "^$1\b"; }

link_web() { step "rustup toolchain link web /usr" "names Debian's toolchain for rustup" rustup toolchain link web /usr; }

ebpf_sources() {
  local why="the eBPF target has no compiled core: it is built from a toolchain's own sources"
  if ! have rustup; then
    ebpf_toolchain=
    has_rust_src '' && return
    if [ "$(command -v rustc)" = /usr/bin/rustc ] && debian_rust_is_enough; then
      install "$why" rust-web-src || return 0
    fi
    $dry_run || has_rust_src '' || problem "the sources of rustc in $(command -v rustc) are missing ($why)"
    return 0
  fi

  if [ -n "${BULKHEAD_EBPF_TOOLCHAIN:-}" ]; then
    has_rust_src "$BULKHEAD_EBPF_TOOLCHAIN" ||
      problem "BULKHEAD_EBPF_TOOLCHAIN=$BULKHEAD_EBPF_TOOLCHAIN lacks rust-src or is older than $rust_min: rustup component add rust-src --toolchain $BULKHEAD_EBPF_TOOLCHAIN"
    return 0
  fi
  # In this order dataplane/build.rs chooses, too.
  if linked web; then
    has_rust_src web && return
  elif has_rust_src nightly; then
    return
  fi
  apt_refresh
  if debian_rust_is_enough; then
    install "$why" rustc-web cargo-web rust-web-src || return 0
    linked web || link_web
    ebpf_toolchain=web
  else # not run in CI
    step "rustup toolchain install nightly with rust-src" "$why" \
      rustup toolchain install nightly --no-self-update --profile minimal --component rust-src || true
    ebpf_toolchain=nightly
  fi
  $dry_run || has_rust_src "$ebpf_toolchain" || problem "toolchain $ebpf_toolchain lacks rust-src or is older than $rust_min"
}

# --- bpf-linker -----------------------------------------------------------------------------------------------------

# LLVM's major version that a linker was built with; empty if it is linked statically and does not say.
linker_llvm() { ldd "$1" 2>/dev/null | sed -n 's/^\s*libLLVM\.so\.\([0-9]*\).*/\1/p;s/^\s*libLLVM-\([0-9]*\).*/\1/p' | head -n1; }

bpf_linker() {
  local llvm='' path linked_llvm version=$BPF_LINKER why
  llvm=$(ebpf_rustc -vV 2>/dev/null | sed -n 's/^LLVM version: \([0-9]*\).*/\1/p') || true
  if [ -z "$llvm" ]; then
    # Only in a dry run, or after a problem that is already noted.
    echo "setup: then build bpf-linker $BPF_LINKER with the LLVM that rustc -vV reports (llvm-N-dev, libpolly-N-dev, libzstd-dev)"
    return
  fi

  if path=$(command -v bpf-linker); then
    version=$(bpf-linker --version | sed -n 's/^bpf-linker \([0-9.]*\).*/\1/p')
    linked_llvm=$(linker_llvm "$path")
    if at_least "$version" "$BPF_LINKER"; then
      # A static one is a release binary that the user chose; a linker reads the bitcode of older compilers, not of newer ones.
      if [ "${linked_llvm:-$llvm}" -ge "$llvm" ]; then
        return
      fi
    else
      version=$BPF_LINKER
    fi
  fi

  why="links the eBPF programs, with the LLVM $llvm of their compiler"
  [ -n "$(apt_candidate "llvm-$llvm-dev")" ] || apt_refresh
  if [ -n "$(apt_candidate "llvm-$llvm-dev")" ]; then
    install "bpf-linker is built with them" "llvm-$llvm-dev" "libpolly-$llvm-dev" libzstd-dev || return 0
    # Without rustup nothing has put cargo's directory into the user's PATH; a plain `cargo build` must find the linker.
    local root=${cargo_bin%/bin}
    if ! have rustup && is_root; then root=/usr/local; fi
    step "build bpf-linker $version (one to two minutes)" "$why" \
      env LLVM_PREFIX="/usr/lib/llvm-$llvm" cargo install bpf-linker "${quiet[@]}" --locked --force --version "$version" \
      --no-default-features --features "llvm-$llvm" --root "$root" ||
      problem "if bpf-linker $version does not know LLVM $llvm yet: a newer one may (BPF_LINKER in tests/setup/setup.sh)"
  else # not run in CI
    install_for curl curl "fetches bpf-linker"
    install_for zstd zstd "unpacks bpf-linker"
    step "fetch the release binary of bpf-linker $version into $cargo_bin" "$why, and no package here has LLVM $llvm" \
      fetch_linker "$version" || true
  fi
}

fetch_linker() {
  local url=https://github.com/aya-rs/bpf-linker/releases/download
  mkdir -p "$cargo_bin"
  curl --proto '=https' --tlsv1.2 --silent --show-error --fail --location \
    "$url/v$1/bpf-linker-$(uname -m)-unknown-linux-musl.tar.zst" | tar --extract --zstd --directory "$cargo_bin" bpf-linker
}

# --- tools of make lint ---------------------------------------------------------------------------------------------

# cargo_tool CRATE COMMAND VERSION WHY: a newer one is kept.
cargo_tool() {
  local version='' command
  read -r -a command <<<"$2"
  if have "${command[0]}"; then version=$("${command[@]}" --version | sed -n 's/^[a-z-]* \([0-9.]*\).*/\1/p'); fi
  if [ -n "$version" ] && at_least "$version" "$3"; then return; fi
  step "build $1 $3 (some minutes)" "$4" cargo install "$1" "${quiet[@]}" --locked --force --version "$3" || true
}

# --- static programs ------------------------------------------------------------------------------------------------

static_programs() {
  local target
  target=$(uname -m)-unknown-linux-musl
  have musl-gcc || install "C code of SQLite in programs that need no library of the machine" musl-tools
  [ -d "$(rustc --print sysroot)/lib/rustlib/$target" ] && return
  if ! have rustup; then
    problem "this Rust has no $target, and there is no rustup to add it"
    return
  fi
  step "rustup target add $target" "programs that need no library of the machine" rustup target add "$target" || true
}

# --- schemathesis ---------------------------------------------------------------------------------------------------

# It stays out of the system's Python. What is installed is noted beside it, last.
schemathesis() {
  local environment=${CARGO_TARGET_DIR:-target}/python wanted=tests/setup/requirements.txt
  local why="the tests hold the API against its OpenAPI document with it"
  cmp --silent "$wanted" "$environment/requirements.txt" && return
  python3 -c 'import ensurepip, venv' 2>/dev/null || install "$why" python3-venv || return 0
  step "install schemathesis and what it needs into $environment" "$why" make_environment "$environment" "$wanted" || true
}

make_environment() {
  rm -rf "$1" && python3 -m venv "$1" &&
    "$1/bin/pip" --disable-pip-version-check install --quiet --no-deps --requirement "$2" && cp "$2" "$1/requirements.txt"
}

# --- flannel's CNI plugin --------------------------------------------------------------------------------------------

# Debian has it nowhere. A built program knows the version of its module.
flannel_plugin() {
  local directory
  directory=$(realpath --canonicalize-missing "${CARGO_TARGET_DIR:-target}/cni")
  install_for go golang-go "builds flannel's CNI plugin"
  if have go; then
    go version -m "$directory/flannel" 2>/dev/null | grep -qw "github.com/containernetworking/plugins.v$FLANNEL_PLUGIN" && return
  elif ! $dry_run; then
    return 0 # a problem that is noted already
  fi
  step "build flannel's CNI plugin $FLANNEL_PLUGIN into $directory" "the tests call the CNI plugin behind it" \
    env CGO_ENABLED=0 GOBIN="$directory" \
    go install "github.com/containernetworking/plugins/plugins/meta/flannel@v$FLANNEL_PLUGIN" || true
}

# --- helm -------------------------------------------------------------------------------------------------------------

# Debian has it nowhere. It makes the plain manifests out of the chart; without it they are not compared.
helm() {
  local directory version
  directory=$(realpath --canonicalize-missing "${CARGO_TARGET_DIR:-target}/helm")
  install_for go golang-go "builds helm"
  have go || return 0 # noted already, or a dry run
  version=$(go env GOVERSION)
  if ! at_least "${version#go}" "$GO_MIN"; then
    printf 'setup: Go %s is older than %s, which builds helm: without it the plain manifests are not compared with the chart\n' "${version#go}" "$GO_MIN"
    return 0
  fi
  go version -m "$directory/helm" 2>/dev/null | grep -qw "helm.sh/helm/v3.v$HELM" && return
  step "build helm $HELM into $directory" "it installs the chart, and makes the plain manifests out of it" \
    env CGO_ENABLED=0 GOBIN="$directory" go install "helm.sh/helm/v3/cmd/helm@v$HELM" || true
}

# --- Kubernetes ------------------------------------------------------------------------------------------------------

# What was built is noted beside it, last.
kubernetes() {
  local directory=${CARGO_TARGET_DIR:-target}/kubernetes version
  have go || return 0 # noted already, or a dry run
  cmp --silent <(tests/kubernetes/build.sh --stamp) "$directory/stamp" && return
  version=$(go env GOVERSION)
  if ! at_least "${version#go}" "$GO_MIN"; then
    # No package has a newer one, and the tests say what they leave out.
    printf 'setup: Go %s is older than %s, which builds the tests'"'"' Kubernetes: without it they leave those tests out\n' "${version#go}" "$GO_MIN"
    [ "${BULKHEAD_REQUIRE_ALL:-}" != 1 ] || problem "no Go $GO_MIN or later, and BULKHEAD_REQUIRE_ALL=1 forbids to leave tests out"
    return 0
  fi
  step "build Kubernetes and flannel into $directory (eight minutes or more on two cores, seconds when Go has them in its cache)" \
    "the tests start clusters" tests/kubernetes/build.sh "$directory" || true
}

# What Prometheus' operator has the API server hold a ServiceMonitor against. go.sum beside it says that it is there.
service_monitors() {
  local directory=${CARGO_TARGET_DIR:-target}/kubernetes/operator source=tests/kubernetes/operator
  # Without a Kubernetes no cluster starts; why there is none is said already.
  [ -e "${CARGO_TARGET_DIR:-target}/kubernetes/stamp" ] || $dry_run || return 0
  cmp --silent "$source/go.sum" "$directory/go.sum" && return
  step "fetch the definition of ServiceMonitors into $directory" "a test applies the chart's to an API server that has it" \
    fetch_service_monitors "$source" "$directory" || true
}

fetch_service_monitors() {
  local module=github.com/prometheus-operator/prometheus-operator fetched
  # Byte for byte what go.sum says, or nothing.
  fetched=$(cd "$1" && GOFLAGS=-mod=readonly go mod download -json "$module" | sed -n 's/^\t"Dir": "\(.*\)",$/\1/p') &&
    mkdir -p "$2" &&
    cp --no-preserve=mode "${fetched:?$module is not there}/example/prometheus-operator-crd/monitoring.coreos.com_servicemonitors.yaml" \
      "$2/servicemonitors.yaml" && cp "$1/go.sum" "$2/go.sum"
}

# --- kernel ---------------------------------------------------------------------------------------------------------

# The kernel is asked by doing, in a network namespace that ends with the command: a configuration file may be absent,
# and a feature may be a module that loads itself.
works() { kernel_said=$(unshare --net -- sh -c "$1" 2>&1); }

# kernel_feature NAME MODULE WHY TEST
kernel_feature() {
  # A missing program is named already.
  have "${4%% *}" || return 0
  works "$4" && return
  if have modprobe && modprobe --dry-run --quiet "$2" 2>/dev/null; then
    root_step "modprobe $2" "$3" modprobe "$2" || return 0
    $dry_run && return
    works "$4" && return
  fi
  problem "this kernel ($(uname -r)) lacks $1 (module $2, not built in and not loadable): $3. It said: ${kernel_said:-nothing}"
}

kernel() {
  if ! is_root; then
    if $dry_run; then
      echo "setup: not root: the kernel is not looked at"
    else
      problem "not root: loading eBPF programs and making network namespaces needs it. Run it as root, as in: sudo -E env PATH=\"\$PATH\" make ..."
    fi
    return 0
  fi
  if ! works true; then
    problem "root, but may not make a network namespace: a container needs --privileged (CAP_SYS_ADMIN, CAP_NET_ADMIN, CAP_BPF)"
    return 0
  fi

  local release
  release=$(uname -r)
  [ -r /sys/kernel/btf/vmlinux ] ||
    problem "this kernel ($release) has no BTF (/sys/kernel/btf/vmlinux): it needs CONFIG_DEBUG_INFO_BTF, as distributions' kernels have it"
  at_least "$release" 6.1 || problem "this kernel ($release) is older than 6.1, the oldest that the programs are made for"
  if ! at_least "$release" 6.6; then
    kernel_feature "clsact" sch_ingress "TCX came with 6.6; before it, programs attach to a clsact qdisc" \
      "tc qdisc add dev lo clsact"
  fi
  kernel_feature "veth" veth "containers hang on veth pairs" "ip link add name probe0 type veth peer name probe1"
  kernel_feature "bridge" bridge "the tests' nodes have one each" "ip link add name probe0 type bridge"
  kernel_feature "VXLAN" vxlan "the overlay between nodes" "ip link add name probe0 type vxlan id 1 dstport 8472"
  kernel_feature "nf_tables" nf_tables "the input rule that guards the VXLAN port" \
    "nft 'table inet a { chain b { type filter hook input priority filter; udp dport 8472 meta mark & 1 == 0 counter drop; }; }'"
  kernel_feature "br_netfilter" br_netfilter "nodes with Kubernetes have it, and bridged packets then meet netfilter" \
    "test -e /proc/sys/net/bridge/bridge-nf-call-iptables"

  if [ "$(stat --file-system --format=%T /sys/fs/bpf 2>/dev/null)" != bpf_fs ]; then
    root_step "mount -t bpf bpf /sys/fs/bpf" "programs and maps are pinned there, and outlive the agent" \
      mount -t bpf bpf /sys/fs/bpf || true
  fi
}

base_packages
finish
host_rust
finish # what follows needs a compiler
ebpf_sources
finish
bpf_linker
if $build || $dist; then
  static_programs
fi
if $lint; then
  rust_lint_tools
  cargo_tool cargo-deny cargo-deny "$CARGO_DENY" "licences, sources and bans of the dependencies"
  cargo_tool typos-cli typos "$TYPOS" "spelling"
fi
if $dist; then
  cargo_tool cargo-cyclonedx "cargo-cyclonedx cyclonedx" "$CARGO_CYCLONEDX" "the list of what the programs are made of"
fi
if $tests; then
  schemathesis
fi
if $tests || $lab; then
  flannel_plugin
  kubernetes
fi
if $lint || $tests || $lab; then
  helm
fi
if $tests; then
  service_monitors
fi
# What is only built or looked through needs nothing of it.
if $tests || $lab || ! { $build || $lint || $dist; }; then
  kernel
fi
finish
