# Boots the systemd of the file system $1, which runs check.service and then ends. In namespaces of its own, and in a
# control group of its own, which goes with it. This shell has a mount namespace already.
set -eu
root=$1
mount --bind "$root" "$root"
mount -t proc proc "$root/proc"
mount -t sysfs -o ro sysfs "$root/sys"
mount -t tmpfs -o mode=755 tmpfs "$root/dev"
for device in null zero full random urandom tty; do
    : >"$root/dev/$device"
    mount --bind "/dev/$device" "$root/dev/$device"
done
mkdir "$root/dev/pts" "$root/dev/shm"
mount -t devpts -o newinstance,ptmxmode=0666 devpts "$root/dev/pts"
ln -s pts/ptmx "$root/dev/ptmx"
mount -t tmpfs tmpfs "$root/run"
mount -t tmpfs tmpfs "$root/sys/fs/cgroup"
mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
group=$root/sys/fs/cgroup$(sed -n 's/^0:://p' /proc/self/cgroup)/vgpu-check-$$
mkdir "$group"
status=0
# The second mount shows systemd its own group as the root of all.
(
    sh -c 'echo $PPID' >"$group/cgroup.procs"
    exec timeout --kill-after 10 600 unshare --mount --pid --cgroup --uts --ipc --fork --kill-child sh -euc '
        cd "$1"
        umount sys/fs/cgroup
        mount -t cgroup2 cgroup2 sys/fs/cgroup
        mount -t proc proc proc
        pivot_root . mnt
        umount -l /mnt
        exec env -i container=vgpu-check PATH=/usr/sbin:/usr/bin:/sbin:/bin \
            /lib/systemd/systemd --system --unit=check.service
    ' sh "$root"
) || status=$?
find "$group" -depth -type d -exec rmdir {} +
exit $status
