#!/bin/sh
# Makes the machine the instance its metadata describes: hostname, keys, password, host keys, user data (once per
# instance). Says what it does on the console, each line after "allod-mini: ".
PATH=/usr/sbin:/usr/bin:/sbin:/bin
HOME=/root
export PATH HOME
umask 022
state=/var/lib/allod-mini
data=/run/metadata
url=http://169.254.169.254
say() { echo "allod-mini: $*" >/dev/console; }

# Seconds since boot.
now() { cut -d. -f1 /proc/uptime; }

from_drive() {
  drive=$(findfs LABEL=config-2 2>/dev/null) || return 1
  modprobe -qa isofs vfat nls_cp437 nls_ascii nls_utf8
  mkdir -p /run/config-2
  mount -o ro "$drive" /run/config-2 2>/dev/null || return 1
  [ -s /run/config-2/openstack/latest/meta_data.json ] || return 1
  mkdir -p $data
  cp /run/config-2/openstack/latest/*.json $data/
  cp /run/config-2/openstack/latest/user_data $data/ 2>/dev/null
  umount /run/config-2
  say "metadata from config drive $drive"
}

# Not `wget -T`: with it, the busybox of Debian 12 dies of a segmentation fault.
get() { timeout 5 wget -q -O "$2" "$url/$1" 2>/dev/null && [ -s "$2" ]; }

from_openstack() {
  mkdir -p $data.new
  get openstack/latest/meta_data.json $data.new/meta_data.json || return 1
  get openstack/latest/user_data $data.new/user_data || rm -f $data.new/user_data
  get openstack/latest/network_data.json $data.new/network_data.json
  rm -rf $data && mv $data.new $data
  say "metadata from $url/openstack"
}

from_ec2() {
  mkdir -p $data.new
  get latest/meta-data/instance-id $data.new/id || return 1
  get latest/meta-data/hostname $data.new/hostname
  get latest/meta-data/public-keys/ $data.new/keys && for key in $(cut -d= -f1 $data.new/keys); do
    get "latest/meta-data/public-keys/$key/openssh-key" $data.new/key && cat $data.new/key && echo
  done >$data.new/authorized_keys
  get latest/user-data $data.new/user_data || rm -f $data.new/user_data
  rm -rf $data && mv $data.new $data
  say "metadata from $url/latest"
}

networked() { ls /run/net | grep -qvE '[.](pid|lock)$'; }

# $1: give up that many seconds after boot.
find_metadata() {
  modprobe -qa virtio_scsi sd_mod sr_mod 2>/dev/null
  from_drive && return 0
  while [ "$(now)" -lt "$1" ]; do
    networked && { from_openstack || from_ec2; } && return 0
    from_drive && return 0
    usleep 200000
  done
  return 1
}

# Scalars of meta_data.json in the form of json.awk.
field() { awk -F'\t' -v k="$1" '$1 == k { print $2; exit }' $data/fields; }

authorize() {
  for home in /root /home/debian; do
    mkdir -p $home/.ssh
    cp $data/authorized_keys $home/.ssh/authorized_keys
    chmod 700 $home/.ssh
    chmod 600 $home/.ssh/authorized_keys
  done
  chown -R debian:debian /home/debian/.ssh
}

set_password() {
  hash=$(printf '%s' "$1" | mkpasswd -m sha512 -P 0) || return
  for user in root debian; do
    awk -F: -v OFS=: -v u=$user -v h="$hash" '$1 == u { $2 = h } { print }' /etc/shadow >/etc/shadow.new
    chmod 600 /etc/shadow.new
    mv /etc/shadow.new /etc/shadow
  done
}

apply() {
  if [ -e $data/meta_data.json ]; then
    awk -f /lib/allod/json.awk $data/meta_data.json >$data/fields
    awk -F'\t' '$1 ~ "^public_keys/" { sub(/(\\n)+$/, "", $2); gsub(/\\n/, "\n", $2); print $2 }' $data/fields >$data/authorized_keys
    id=$(field uuid)
    name=$(field hostname)
    password=$(field admin_pass)
  else
    id=$(cat $data/id)
    name=$(cat $data/hostname 2>/dev/null)
    password=
  fi
  [ -e $data/authorized_keys ] && authorize
  name=$(printf %s "${name%%.*}" | tr -cd 'A-Za-z0-9-' | cut -c1-63)
  if [ -n "$name" ]; then
    echo "$name" >/etc/hostname
    hostname "$name"
    printf '127.0.0.1 localhost\n::1 localhost\n127.0.1.1 %s\n' "$name" >/etc/hosts
  fi
  fresh=
  if [ "$(cat $state/instance 2>/dev/null)" != "$id" ]; then
    fresh=1
    [ -n "$password" ] && set_password "$password"
    # A copied disk must not share its identity with the original.
    [ -e $state/instance ] && rm -f /etc/dropbear/dropbear_*_host_key
    rm -f $state/user-data
    echo "$id" >$state/instance
  fi
  say "instance $id hostname $(hostname)"
}

start_ssh() {
  mkdir -p /etc/dropbear
  for kind in ed25519 ecdsa; do
    key=/etc/dropbear/dropbear_${kind}_host_key
    [ -s $key ] || { dropbearkey -t $kind -f $key.new >/dev/null 2>&1 && mv $key.new $key; }
    say "host key $(dropbearkey -y -f $key | grep '^Fingerprint')"
  done
  # Passwords only where one was set; the RSA host key is made when a client asks for it.
  grep -q '^root:\$' /etc/shadow && only= || only=-s
  pidof dropbear >/dev/null || dropbear -R $only -T 6
}

run_user_data() {
  [ -s $data/user_data ] || return 0
  [ -e $state/user-data ] && return 0
  script=$state/user-data.script
  cp $data/user_data $script
  if [ "$(xxd -p -l 2 $script)" = 1f8b ]; then
    mv $script $script.gz && gunzip $script.gz
  fi
  date >$state/user-data
  if [ "$(head -c 2 $script)" != '#!' ]; then
    say "user-data is no script: ignored"
    return 0
  fi
  chmod 700 $script
  say "user-data starts"
  { cd /; $script </dev/null 2>&1; echo $? >$state/user-data.status; } | tee /var/log/user-data.log >/dev/console
  say "user-data done status $(cat $state/user-data.status)"
}

mkdir -p $state
# Without any NIC only a config drive can answer, and that is there at once.
patience=120
ls /sys/class/net | grep -q '^e' || patience=10
resize2fs "$(awk '$2 == "/" && $1 ~ "^/dev" { print $1 }' /proc/mounts | tail -n 1)" >/var/log/resize.log 2>&1
if find_metadata $patience; then
  apply
else
  say "no metadata yet: trying on"
fi
start_ssh
say "ready $(cut -d' ' -f1 /proc/uptime)"
if [ ! -e $data ]; then
  find_metadata 1200 && apply || { say "no metadata"; exit 1; }
fi
run_user_data
