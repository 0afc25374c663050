#!/bin/sh
# Brings an Ethernet interface up with DHCP; IPv6 comes from router advertisements. Called with ACTION and MDEV.
PATH=/usr/sbin:/usr/bin:/sbin:/bin
case $MDEV in eth* | en*) ;; *) exit 0 ;; esac
pid=/run/net/$MDEV.pid
if [ "$ACTION" = remove ]; then
  [ -e "$pid" ] && kill "$(cat "$pid")" 2>/dev/null
  rm -rf "$pid" /run/net/"$MDEV" /run/net/"$MDEV".lock
  exit 0
fi
[ "$ACTION" = add ] && [ -e /sys/class/net/"$MDEV" ] || exit 0
# The boot scan and mdev may both see it: one wins.
mkdir /run/net/"$MDEV".lock 2>/dev/null || exit 0
ip link set "$MDEV" up
udhcpc -b -R -S -i "$MDEV" -p "$pid" -s /lib/allod/dhcp -t 5 -T 1 -A 2 -O mtu -O staticroutes \
  -x hostname:"$(hostname)" >/dev/null 2>&1 &
