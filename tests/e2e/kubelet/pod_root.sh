#!/usr/bin/env bash
# pod_root.sh ROOT SETTINGS CMD...: makes a container's file system and becomes CMD in it. Runs as the first
# process of mount, process and host-name namespaces made by `unshare`, so nothing here outlives CMD.
#
# ROOT      an empty folder; the container's root is mounted there
# SETTINGS  a file of lines KIND<TAB>...:
#             system PATH              a folder of this machine, seen read-only at the same path (the "image")
#             mount SOURCE TARGET MODE a volume; MODE is ro or rw
#             user UID GID             whom CMD runs as, without capabilities and new privileges
#             hostname NAME; workdir PATH; readonly   (securityContext.readOnlyRootFilesystem)
set -euo pipefail
root=$1 settings=$2
shift 2
workdir=/ readonly=no identity=()

bind() {  # SOURCE TARGET MODE
  if [[ -d $1 ]]; then mkdir -p "$root$2"; else mkdir -p "$(dirname "$root$2")"; touch "$root$2"; fi
  mount --bind "$1" "$root$2"
  if [[ $3 == ro ]]; then mount -o remount,bind,ro "$root$2"; fi
}

mount -t tmpfs -o mode=755,size=64m tmpfs "$root"
mkdir -p "$root"/{proc,sys,dev,tmp,run,var/{lib,cache,log,tmp},mnt,home}
ln -s ../run "$root/var/run"  # relative: resolved inside the root, here too
mount -t proc proc "$root/proc"
mount --rbind /sys "$root/sys"
mount --rbind /dev "$root/dev"

while IFS=$'\t' read -r kind first second third; do
  case $kind in
    system) if [[ -L $first ]]; then cp -P "$first" "$root$first"; else bind "$first" "$first" ro; fi ;;
    mount) bind "$first" "$second" "$third" ;;
    user) identity=(setpriv "--reuid=$first" "--regid=$second" --clear-groups --no-new-privs --inh-caps=-all --bounding-set=-all) ;;
    hostname) hostname "$first" ;;
    workdir) workdir=$first ;;
    readonly) readonly=yes ;;
  esac
done <"$settings"

if [[ $readonly == yes ]]; then mount -o remount,ro "$root"; fi
exec chroot "$root" "${identity[@]}" env --chdir="$workdir" -- "$@"
