# shellcheck shell=bash
# Shared by scripts/test and scripts/demo: find a Python, make .venv, install into it, install Debian packages.

say() {
	printf '%s\n' "$*" >&2
}

die() {
	say "error: $*"
	exit 1
}

have() {
	command -v "$1" >/dev/null 2>&1
}

usable_python() {
	"$1" -c 'import sys; sys.exit(sys.version_info < (3, 10))' >/dev/null 2>&1
}

# The first Python >= 3.10 on PATH, or nothing.
find_python() {
	local candidate
	for candidate in "${PYTHON:-python3}" python3 python3.13 python3.12 python3.11 python3.10; do
		if have "$candidate" && usable_python "$candidate"; then
			command -v "$candidate"
			return 0
		fi
	done
	return 1
}

# How packages may be installed here: "" (we are root), "sudo -n", or "no".
apt_rights() {
	if ! have apt-get; then
		echo no
	elif [ "$(id -u)" = 0 ]; then
		echo
	elif have sudo && sudo -n true 2>/dev/null; then
		echo "sudo -n"
	else
		echo no
	fi
}

# apt_get ARGUMENT...: non-interactive and bounded; shows what it said only if it failed.
apt_get() {
	local rights
	rights=$(apt_rights)
	if [ "$rights" = no ]; then
		say "apt-get cannot be used here (needs root or passwordless sudo)"
		return 1
	fi
	# shellcheck disable=SC2086  # $rights is "" or two words
	if ! $rights env DEBIAN_FRONTEND=noninteractive timeout 300 apt-get -y -q \
		-o DPkg::Lock::Timeout=120 -o Acquire::Retries=2 "$@" >"$apt_log" 2>&1 </dev/null; then
		tail -n 5 "$apt_log" >&2
		return 1
	fi
}

# Once a run.
apt_update() {
	[ -n "$apt_updated" ] && return 0
	apt_get update && apt_updated=yes
}

apt_install() {
	say "installing Debian packages: $*"
	if ! { apt_update && apt_get install --no-install-recommends "$@"; }; then
		say "these are not installed: $*"
		return 1
	fi
}
apt_updated=
apt_log=$(mktemp)
trap 'rm -f "$apt_log"' EXIT

# What the compiled module needs beside Python itself; each ends with 0 if it is there.
has_venv() {
	"$1" -c 'import ensurepip, venv' >/dev/null 2>&1
}

has_header() {
	"$1" -c 'import os, sys, sysconfig
sys.exit(not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")))' >/dev/null 2>&1
}

# The compiler this Python was built with is the one that builds its modules: "cc" alone says nothing.
has_compiler() {
	"$1" -c 'import os, shutil, sys, sysconfig
compiler = os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc"
sys.exit(shutil.which(compiler.split()[0]) is None)' >/dev/null 2>&1
}

# Sets $python. Installs what is missing where it may, and ends with a message where it may not.
ensure_build_tools() {
	local wanted=()
	if python=$(find_python); then
		has_venv "$python" || wanted+=(python3-venv)
		has_header "$python" || wanted+=(python3-dev)
		has_compiler "$python" || wanted+=(gcc libc6-dev)
	else
		wanted=(python3 python3-dev python3-venv gcc libc6-dev)
	fi
	[ ${#wanted[@]} -gt 0 ] || return 0
	apt_install "${wanted[@]}"
	python=$(find_python) || die "no Python >= 3.10 found (python3, python3.13 ... python3.10)"
	has_venv "$python" || die "$python cannot make virtual environments; install python3-venv"
	has_header "$python" || die "$python has no Python.h; install python3-dev"
	has_compiler "$python" || die "no C compiler; install gcc"
}

# ensure_venv EXTRAS: .venv with the project installed in place; redone when what it depends on has changed.
ensure_venv() {
	local extras=$1 stamp=.venv/sevkvm-installed want
	[ -n "${python:-}" ] || ensure_build_tools
	if [ -e .venv ] && ! usable_python .venv/bin/python; then
		say "removing a .venv that does not work here"
		rm -rf .venv
	fi
	if [ ! -e .venv ]; then
		say "creating .venv with $python"
		"$python" -m venv .venv || die "$python -m venv failed"
	fi
	want=$(.venv/bin/python -VV; pwd; cat pyproject.toml setup.py csrc/*)
	want=$(printf '%s' "$want" | sha256sum | cut -d ' ' -f 1)
	# "dev" holds everything that "shim" does
	if grep -qxF "$want" "$stamp-$extras" "$stamp-dev" 2>/dev/null \
		&& .venv/bin/python -c 'import sevkvm.native' >/dev/null 2>&1; then
		return 0
	fi
	say "installing sevkvm[$extras] into .venv"
	.venv/bin/python -m pip install -q --disable-pip-version-check --no-input -e ".[$extras]" </dev/null \
		|| die "pip install failed (is the package index reachable?)"
	printf '%s\n' "$want" >"$stamp-$extras"
}
