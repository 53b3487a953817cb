//! The client of the two files as `docs/file-protocol.md` has it, for a shell.

/// Defines `ask NUMBER`, which prints the answer from `directory`; `pause` is a command that waits a moment.
pub(crate) fn ask(directory: &str, pause: &str) -> String {
    format!(
        r#"look_for() {{
    for n in $(seq 600); do
        line=$(cat {directory}/response.txt)
        case $line in
        $1) return ;;
        esac
        {pause}
    done
    echo "no answer: $line" >&2
    return 1
}}
ask() {{
    echo 0 >{directory}/command.txt && look_for 0:Ready || return
    echo "$1" >{directory}/command.txt && look_for '[12]:*' && echo "$line"
}}
"#
    )
}
