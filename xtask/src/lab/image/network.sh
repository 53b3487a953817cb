# Functions of dom0 once it has a network (network_up in functions.sh has brought this file). dom0
# is 10.77.0.1 to every guest.

# nfsd_start: the NFS server, version 4 alone, unless it runs.
nfsd_start() {
    grep -qs nfsd /proc/mounts && return
    modprobe nfsd && mount -t nfsd nfsd /proc/fs/nfsd || return
    mkdir -p /var/lib/nfs/v4recovery
    touch /etc/exports /var/lib/nfs/etab /var/lib/nfs/rmtab
    # A server that has just started waits so long for clients of before; the least is 10 s.
    echo 10 >/proc/fs/nfsd/nfsv4gracetime
    rpc.mountd --no-nfs-version 3 && rpc.nfsd --no-nfs-version 3 4 || return
    echo Y >/proc/fs/nfsd/v4_end_grace # there were none
}

# share_make NAME: the guest's directory, a file system of its own, which bounds what it may fill
# and out of which no forged file handle leads.
share_make() {
    local directory=/dev/shm/vgpu/$1
    mkdir -p "$directory"
    grep -q " $directory " /proc/mounts && return
    mount -t tmpfs -o size=64m,mode=0700,uid=65534,gid=65534,nodev,nosuid,noexec vgpu "$directory"
}

# share_export NAME ADDRESS: exports it to this guest alone, whose every user counts as nobody.
share_export() {
    exportfs -o rw,sync,fsid=0,no_subtree_check,all_squash "$2:/dev/shm/vgpu/$1"
}

# share_withdraw NAME ADDRESS
share_withdraw() {
    exportfs -u "$2:/dev/shm/vgpu/$1"
}
