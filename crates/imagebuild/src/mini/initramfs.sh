#!/bin/busybox sh
# First program: finds the root filesystem by its label, lets its partition fill the disk, and goes there.
busybox=/bin/busybox
$busybox mount -t proc proc /proc
$busybox mount -t sysfs sysfs /sys
$busybox mount -t devtmpfs devtmpfs /dev
exec </dev/console >/dev/console 2>&1
$busybox modprobe -qa virtio_pci virtio_blk

# The label in the superblock of an ext4 filesystem.
label() { $busybox dd if="$1" bs=1 skip=1144 count=16 2>/dev/null | $busybox tr -d '\0'; }

find_root() {
  for disk in /sys/block/vd* /sys/block/sd* /sys/block/nvme* /sys/block/xvd*; do
    [ -e "$disk" ] || continue
    disk=${disk##*/}
    for part in /dev/"$disk"1 /dev/"$disk"p1; do
      if [ -b "$part" ] && [ "$(label "$part")" = allod-mini ]; then root=$part; return 0; fi
    done
  done
  return 1
}

tries=0
until find_root; do
  tries=$((tries + 1))
  # Other buses only where there is no virtio disk: each module costs time.
  [ $tries = 5 ] && $busybox modprobe -qa virtio_scsi sd_mod ata_piix xen_blkfront
  if [ $tries -gt 150 ]; then
    echo "allod-mini: no disk with a filesystem labelled allod-mini"
    exec $busybox sh
  fi
  $busybox usleep 100000
done

# One byte of a number, as printf wants it.
byte() { printf '\\%03o' $((($1 >> $2) & 255)); }

# The partition ends where the disk ends: 4 bytes in the partition table, before anything is mounted from it.
sectors=$($busybox cat /sys/block/"$disk"/size)
start=$($busybox cat /sys/block/"$disk"/"${root##*/}"/start)
size=$($busybox cat /sys/block/"$disk"/"${root##*/}"/size)
wanted=$((sectors - start))
[ $wanted -gt 4294967295 ] && wanted=4294967295
if [ $wanted -gt $((size + 2048)) ]; then
  printf "$(byte $wanted 0)$(byte $wanted 8)$(byte $wanted 16)$(byte $wanted 24)" |
    $busybox dd of=/dev/"$disk" bs=1 seek=458 conv=notrunc 2>/dev/null
  $busybox partprobe /dev/"$disk"
fi

$busybox mount -t ext4 -o rw,noatime "$root" /root || {
  echo "allod-mini: cannot mount $root"
  exec $busybox sh
}
for dir in dev proc sys; do $busybox mount -o move /$dir /root/$dir; done
exec $busybox switch_root /root /sbin/init
