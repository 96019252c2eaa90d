# shellcheck shell=sh
# Prepares the namespaces of a node. $1 is its directory, $2 its name. What the node changes where programs look by default is its own.
directory=$1
hostname "$2"
mount -t tmpfs run /run
mkdir /run/lock /run/netns
# A kubelet removes logs of pods that are not its own.
for place in etc opt var/lib var/log; do
  mkdir -p "$directory/changed/$place" "$directory/work/$place"
  mount -t overlay node -o "lowerdir=/$place,upperdir=$directory/changed/$place,workdir=$directory/work/$place" "/$place"
done
mkdir -p /etc/cni/net.d /opt/cni/bin /var/lib/cni /var/lib/kubelet
mount --bind "$directory/net.d" /etc/cni/net.d
mount --bind "$directory/plugins" /opt/cni/bin
mount --bind "$directory/cni" /var/lib/cni
mount --bind "$directory/kubelet" /var/lib/kubelet
# Else the kubelet lays it over itself to share it, while it makes a socket in it: now and then it renamed that across the two.
mount --make-shared /var/lib/kubelet
# The links in /sys/class/net are those of whoever mounts it. The control groups stay the machine's.
mkdir /run/cgroup
mount --rbind /sys/fs/cgroup /run/cgroup
# What lay below would still be in the list of mounts.
umount --recursive --lazy /sys
mount -t sysfs sysfs /sys
mount --rbind /run/cgroup /sys/fs/cgroup
umount --recursive --lazy /run/cgroup
mount -t bpf bpf /sys/fs/bpf
# The kubelet sets these for the whole machine. It finds them set.
mkdir "$directory/sysctl"
while read -r key value; do
  echo "$value" >"$directory/sysctl/${key##*/}"
  mount --bind "$directory/sysctl/${key##*/}" "/proc/sys/$key"
done <<END
vm/overcommit_memory 1
vm/panic_on_oom 0
kernel/panic 10
kernel/panic_on_oops 1
kernel/keys/root_maxkeys 1000000
kernel/keys/root_maxbytes 25000000
END
