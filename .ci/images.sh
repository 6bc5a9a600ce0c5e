# shellcheck shell=bash
# What the scripts of this folder share: images made from packages of Debian's
# testing suite, under the names of the public images. Sourced, not run.

SUITE=forky
ENGINE_HOME=${ENGINE_HOME:-/var/lib/ci-engine}

fail() {
  echo "${0##*/}: $*" >&2
  exit 1
}

have_image() { docker image inspect "$1" >/dev/null 2>&1; }

# Two runs at once would start two engines; the second waits here for the first.
own_home() {
  ((EUID == 0)) || fail "setting up an engine or a base image needs root"
  mkdir -p "$ENGINE_HOME"
  exec 9>"$ENGINE_HOME/lock"
  flock 9
}

find_mirror() {
  apt-get indextargets --format "\$(REPO_URI)" 'Created-By: Packages' 'Origin: Debian' 'Label: Debian' | sed -n 1p
}

# The host's package lists may be missing or outdated; only then fetch them.
install_packages() {
  local install=(apt-get install -qq --no-install-recommends "$@")
  export DEBIAN_FRONTEND=noninteractive
  if [[ -z $(find_mirror) ]] || ! "${install[@]}" >/dev/null 2>&1; then
    apt-get update -qq
    "${install[@]}" >/dev/null
  fi
  MIRROR=$(find_mirror)
  [[ $MIRROR ]] || fail "apt has no Debian mirror configured"
}

# debian_root DIR PACKAGE...: a minimal Debian with these packages, without documentation.
debian_root() {
  local root=$1 packages
  shift
  packages=$(IFS=, && echo "ca-certificates,$*")
  install_packages ca-certificates debootstrap
  rm -rf --one-file-system "$root"
  debootstrap --variant=minbase --include="$packages" \
    "$SUITE" "$root" "$MIRROR" /usr/share/debootstrap/scripts/sid >"$root.log"
  rm -rf "$root"/var/{lib/apt/lists,cache/apt}/* "$root"/usr/share/{doc,man,locale}/*
}

# What containers on this host need, as the host itself does, to reach an index.
host_settings() {
  local name
  for name in PIP_INDEX_URL PIP_TRUSTED_HOST {HTTP,HTTPS,NO}_PROXY {http,https,no}_proxy; do
    [[ -z ${!name-} ]] || echo "ENV $name=\"${!name}\""
  done
  [[ -z $(find /usr/local/share/ca-certificates -name '*.crt') ]] ||
    echo 'ENV SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt'
}

# import_root DIR IMAGE: the Dockerfile instructions come from standard input.
import_root() {
  local line changes=()
  while read -r line; do changes+=(-c "$line"); done
  tar --xattrs --numeric-owner -C "$1" -c . | docker import "${changes[@]}" - "$2" >/dev/null
}

# ensure_image IMAGE BUILDER: what is there, else the public image, else our own.
ensure_image() {
  have_image "$1" && return
  timeout 10 docker pull --quiet "$1" >/dev/null 2>&1 && return
  own_home
  have_image "$1" || "$2" "$1"
}
