#!/bin/sh
# udhcpc's script: address, MTU, routes (option 121 takes the place of the router option, RFC 3442), resolvers.
PATH=/usr/sbin:/usr/bin:/sbin:/bin
metric=$((100 + $(cat /sys/class/net/"$interface"/ifindex)))
case $1 in
  deconfig)
    ip -4 addr flush dev "$interface"
    rm -f /run/net/"$interface"
    ;;
  bound | renew)
    [ -n "$mtu" ] && [ "$mtu" -ge 576 ] && ip link set "$interface" mtu "$mtu"
    if [ "$(cat /run/net/"$interface" 2>/dev/null)" != "$ip/$mask" ]; then
      ip -4 addr flush dev "$interface"
      ip addr add "$ip/$mask" broadcast + dev "$interface"
    fi
    if [ -n "$staticroutes" ]; then
      set -- $staticroutes
      while [ $# -ge 2 ]; do
        case $2 in
          0.0.0.0) ip route replace "$1" dev "$interface" metric $metric ;;
          *) ip route replace "$1" via "$2" dev "$interface" metric $metric onlink ;;
        esac
        shift 2
      done
    else
      for gateway in $router; do
        ip route replace default via "$gateway" dev "$interface" metric $metric onlink
        break
      done
    fi
    if [ -n "$dns" ]; then
      {
        [ -n "$domain" ] && echo "search $domain"
        for server in $dns; do echo "nameserver $server"; done
      } >/etc/resolv.conf
    fi
    if [ ! -e /run/net/"$interface" ]; then echo "allod-mini: $interface $ip/$mask" >/dev/console; fi
    echo "$ip/$mask" >/run/net/"$interface"
    ;;
esac
