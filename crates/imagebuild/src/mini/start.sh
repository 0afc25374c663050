#!/bin/sh
# Devices, modules, network. What depends on the instance is in /lib/allod/instance.
PATH=/usr/sbin:/usr/bin:/sbin:/bin
mkdir -p /dev/pts /dev/shm
mount -t devpts -o mode=620,gid=5 devpts /dev/pts
mount -t tmpfs -o mode=755,size=16m tmpfs /run
mount -t tmpfs -o mode=1777 tmpfs /tmp
mkdir -p /run/net
[ -e /dev/fd ] || ln -s /proc/self/fd /dev/fd
echo 1 >/proc/sys/kernel/printk
modprobe -qa virtio_rng virtio_net button evdev
ifconfig lo 127.0.0.1 up
hostname -F /etc/hostname
# Scans what is there, then listens for what is plugged later.
mdev -d
for nic in /sys/class/net/*; do
  ACTION=add MDEV=${nic##*/} /lib/allod/nic
done
acpid
