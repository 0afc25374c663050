#!/bin/sh
# Keeps /dev/disk/by-id/virtio-<serial> in step with the disks. Called by mdev with ACTION and MDEV.
PATH=/usr/sbin:/usr/bin:/sbin:/bin
dir=/dev/disk/by-id
if [ "$ACTION" = remove ]; then
  for link in $dir/*; do
    [ "$(readlink "$link")" = "../../$MDEV" ] && rm -f "$link"
  done
  exit 0
fi
for sys in /sys/block/"$MDEV" /sys/block/*/"$MDEV"; do
  [ -e "$sys" ] || continue
  part=
  [ -e "$sys/partition" ] && part=-part$(cat "$sys/partition") && sys=${sys%/*}
  serial=$(cat "$sys/serial" 2>/dev/null) || continue
  [ -n "$serial" ] || continue
  mkdir -p $dir
  ln -sf "../../$MDEV" "$dir/virtio-$(echo "$serial" | tr -c 'A-Za-z0-9_.\n-' _)$part"
done
exit 0
