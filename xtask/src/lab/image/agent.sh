# Runs scripts that arrive as lines on standard input and answers on standard
# output: in dom0 on the second serial port, in a guest on its Xen console.
#
#   @req ID SECONDS LENGTH BASE64    run this script (LENGTH characters of base64)
#   @again ID                        answer that request once more
# answers
#   @ready                           at start
#   @bad ID                          the request came damaged: send it again
#   @out ID BASE64   @err ID BASE64  output, one or more lines
#   @end ID STATUS OUT-BYTES ERR-BYTES   of which at most the last 256 and 64 KiB were sent
#
# The lengths let the other side notice a kernel message in the middle of a line.
dir=${LAB_AGENT_DIR:-/run/agent}
mkdir -p $dir

# Processes are dear in an emulated machine, so there are as few as possible.
answer() {
    echo
    [ ! -s $dir/out ] || tail -c 262144 $dir/out | base64 -w 3000 | sed "s/^/@out $1 /"
    [ ! -s $dir/err ] || tail -c 65536 $dir/err | base64 -w 3000 | sed "s/^/@err $1 /"
    read -r status <$dir/status
    out=0 err=0
    read -r out err <<END
$(cd $dir && stat -c %s out err | tr '\n' ' ')
END
    # The line after the end is for sed in guest_run, which reads one line ahead.
    echo "@end $1 $status $out $err"
    echo @.
}

printf '\n@ready\n'
while read -r mark id limit length body; do
    case $mark in
    @again) answer "$id" ;;
    @req)
        if [ "${#body}" != "$length" ]; then
            printf '\n@bad %s\n' "$id"
            continue
        fi
        echo "$body" | base64 -d >$dir/script
        # A session of its own, so that a script that runs too long ends with
        # its children; what must outlive the script starts with setsid.
        timeout -s KILL "$limit" setsid sh -c "echo \$\$ >$dir/pid; . ${LAB_FUNCTIONS:-/lab/functions.sh}; . $dir/script" \
            </dev/null >$dir/out 2>$dir/err
        status=$?
        if [ $status = 137 ]; then
            kill -KILL "-$(cat $dir/pid)" 2>/dev/null
            echo "lab: killed after $limit s" >>$dir/err
        fi
        echo $status >$dir/status
        answer "$id"
        ;;
    esac
done
