//! The grammar of the two files.
//!
//! `command.txt` holds one decimal number and a newline. `response.txt` holds one line,
//! `STATUS:MESSAGE`. Everything here is pure: bytes in, values out.

use std::fmt;

/// The file the client writes.
pub const COMMAND_FILE: &str = "command.txt";
/// The file the mediator writes.
pub const RESPONSE_FILE: &str = "response.txt";
/// Longest `command.txt` that is read, in bytes; the longest sensible one has two.
pub const MAX_COMMAND_BYTES: usize = 64;
/// Longest message in bytes; longer ones are cut, so that a response always fits one read into a
/// small client's buffer.
pub const MAX_MESSAGE_BYTES: usize = 400;
/// Elements of each vector of command 1.
pub const VECTOR_ADD_ELEMENTS: usize = 1024;

/// The commands of a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    /// 0: nothing; sets the answer back to [`Response::ready`].
    Nothing,
    /// 1: add two vectors of [`VECTOR_ADD_ELEMENTS`] fixed numbers and check every sum.
    VectorAdd,
    /// 2: say which GPU, or which replacement for one, does the work.
    GpuInfo,
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Command::Nothing => "0 (nothing)",
            Command::VectorAdd => "1 (vector add)",
            Command::GpuInfo => "2 (GPU info)",
        })
    }
}

/// The reasons why the bytes of `command.txt` are not a command, or not yet.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CommandError {
    /// Nothing but white space: the writer has truncated the file and not written yet.
    #[error("command.txt is empty; write 0, 1 or 2 and a newline")]
    Empty,
    /// A number without the newline that says it is whole: `1` may become `12`.
    #[error("command.txt holds a number without a newline; write 0, 1 or 2 and a newline")]
    HalfWritten,
    /// Something other than digits.
    #[error("command.txt holds {0:?}, which is no decimal number; write 0, 1 or 2 and a newline")]
    NotANumber(String),
    /// More than one number or line.
    #[error("command.txt holds more than one number; write 0, 1 or 2 and a newline")]
    MoreThanOne,
    /// A number that is not a command.
    #[error("command {0} is unknown; write 0 (nothing), 1 (vector add) or 2 (GPU info)")]
    Unknown(u32),
    /// A number beyond 32 bits.
    #[error("the number in command.txt is too large; write 0, 1 or 2 and a newline")]
    NumberTooLarge,
    /// The file is longer than [`MAX_COMMAND_BYTES`].
    #[error("command.txt is longer than {MAX_COMMAND_BYTES} bytes; write 0, 1 or 2 and a newline")]
    TooLong,
}

/// Reads the contents of `command.txt`.
///
/// White space around the number is allowed, so that an editor's `\r\n` works.
///
/// # Errors
/// [`CommandError::Empty`] and [`CommandError::HalfWritten`] mean "look again later", the others
/// are final for these bytes.
pub fn parse_command(bytes: &[u8]) -> Result<Command, CommandError> {
    if bytes.len() > MAX_COMMAND_BYTES {
        return Err(CommandError::TooLong);
    }
    let mut words = bytes
        .split(u8::is_ascii_whitespace)
        .filter(|word| !word.is_empty());
    let Some(number) = words.next() else {
        return Err(CommandError::Empty);
    };
    if !number.iter().all(u8::is_ascii_digit) {
        return Err(CommandError::NotANumber(excerpt(number)));
    }
    if let Some(second) = words.next() {
        return Err(if second.iter().all(u8::is_ascii_digit) {
            CommandError::MoreThanOne
        } else {
            CommandError::NotANumber(excerpt(second))
        });
    }
    // The number is the only word, so a newline anywhere but before it ends it.
    let start = bytes
        .iter()
        .position(|b| !b.is_ascii_whitespace())
        .unwrap_or(0);
    if !bytes[start..].contains(&b'\n') {
        return Err(CommandError::HalfWritten);
    }
    // At most 64 digits, each step checked: no overflow, however many leading zeros.
    let value = number.iter().try_fold(0u32, |value, digit| {
        value.checked_mul(10)?.checked_add(u32::from(digit - b'0'))
    });
    match value {
        Some(0) => Ok(Command::Nothing),
        Some(1) => Ok(Command::VectorAdd),
        Some(2) => Ok(Command::GpuInfo),
        Some(other) => Err(CommandError::Unknown(other)),
        None => Err(CommandError::NumberTooLarge),
    }
}

/// The first few characters of the client's bytes, for a message.
fn excerpt(word: &[u8]) -> String {
    String::from_utf8_lossy(word).chars().take(20).collect()
}

/// The number before the colon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// 0: ready, or working on a command.
    Working,
    /// 1: the command succeeded.
    Success,
    /// 2: the command failed, or was not one.
    Failure,
}

impl Status {
    fn digit(self) -> char {
        match self {
            Status::Working => '0',
            Status::Success => '1',
            Status::Failure => '2',
        }
    }
}

/// One line of `response.txt`. [`fmt::Display`] gives it without the newline.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Response {
    status: Status,
    message: String,
}

impl Response {
    /// A response with a message of one line: control characters, line ends among them, become
    /// spaces, and what exceeds [`MAX_MESSAGE_BYTES`] is cut.
    pub fn new(status: Status, message: &str) -> Response {
        let mut line = String::with_capacity(message.len().min(MAX_MESSAGE_BYTES));
        for character in message.trim().chars() {
            let character = if character.is_control() {
                ' '
            } else {
                character
            };
            if line.len() + character.len_utf8() > MAX_MESSAGE_BYTES {
                break;
            }
            line.push(character);
        }
        Response {
            status,
            message: line,
        }
    }

    /// The response from the start until the first command: `0:Ready`.
    pub fn ready() -> Response {
        Response::new(Status::Working, "Ready")
    }

    /// The response while `command` runs.
    pub fn running(command: Command) -> Response {
        Response::new(Status::Working, &format!("Running command {command}"))
    }

    /// The response while `command.txt` is empty, until that has lasted too long.
    pub fn waiting() -> Response {
        Response::new(Status::Working, "Waiting for a number in command.txt")
    }

    /// The response once the mediator has stopped, so that a waiting client ends.
    pub fn stopped() -> Response {
        Response::new(
            Status::Failure,
            "The mediator has stopped; start vgpu-mediatord again",
        )
    }

    /// The answer to a command that ran.
    pub fn outcome(outcome: &Result<String, String>) -> Response {
        match outcome {
            Ok(message) => Response::new(Status::Success, message),
            Err(message) => Response::new(Status::Failure, message),
        }
    }

    /// The status.
    pub fn status(&self) -> Status {
        self.status
    }

    /// The message, one line.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// The contents of the file.
    pub fn to_file(&self) -> Vec<u8> {
        format!("{self}\n").into_bytes()
    }
}

impl fmt::Display for Response {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.status.digit(), self.message)
    }
}

/// The bytes of `response.txt` are not a response; a client looks again later.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("response.txt does not hold one line STATUS:MESSAGE with status 0, 1 or 2")]
pub struct ResponseError;

/// Reads the contents of `response.txt`, as a client does.
///
/// # Errors
/// [`ResponseError`] when the line is not whole or not of the form.
pub fn parse_response(bytes: &[u8]) -> Result<Response, ResponseError> {
    let line = bytes.strip_suffix(b"\n").ok_or(ResponseError)?;
    let text = std::str::from_utf8(line).map_err(|_| ResponseError)?;
    let (status, message) = text.split_once(':').ok_or(ResponseError)?;
    let status = match status {
        "0" => Status::Working,
        "1" => Status::Success,
        "2" => Status::Failure,
        _ => return Err(ResponseError),
    };
    if message.len() > MAX_MESSAGE_BYTES || message.chars().any(char::is_control) {
        return Err(ResponseError);
    }
    Ok(Response {
        status,
        message: message.to_owned(),
    })
}

/// The message of a vector add whose every sum was right. `executor` did the work, as in `cpu
/// executor` or `cuda executor, NVIDIA H100`.
pub fn vector_add_passed(elements: usize, executor: &str) -> String {
    format!("Vector add PASSED: {elements} elements, 0 errors ({executor})")
}

/// The message of a vector add with wrong sums.
pub fn vector_add_failed(elements: usize, errors: usize, executor: &str) -> String {
    format!("Vector add FAILED: {elements} elements, {errors} errors ({executor})")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn commands_are_a_number_and_a_newline() {
        assert_eq!(parse_command(b"0\n"), Ok(Command::Nothing));
        assert_eq!(parse_command(b"1\n"), Ok(Command::VectorAdd));
        assert_eq!(parse_command(b"2\n"), Ok(Command::GpuInfo));
        assert_eq!(parse_command(b" 0001 \r\n"), Ok(Command::VectorAdd));
        assert_eq!(parse_command(b"\n1\n\n"), Ok(Command::VectorAdd));
    }

    #[test]
    fn what_is_no_command_says_why() {
        use CommandError::*;
        let cases: [(&[u8], CommandError); 14] = [
            (b"", Empty),
            (b"\n", Empty),
            (b" \r\n", Empty),
            (b"1", HalfWritten),
            (b"\n1", HalfWritten),
            (b"1 ", HalfWritten),
            (b"-1\n", NotANumber("-1".into())),
            (b"+1\n", NotANumber("+1".into())),
            (b"0x1\n", NotANumber("0x1".into())),
            (b"1 x\n", NotANumber("x".into())),
            (b"1\n2\n", MoreThanOne),
            (b"3\n", Unknown(3)),
            (b"4294967296\n", NumberTooLarge),
            (&[b'1'; 65], TooLong),
        ];
        for (bytes, error) in cases {
            assert_eq!(parse_command(bytes), Err(error), "{bytes:?}");
        }
    }

    #[test]
    fn responses_are_one_line() {
        assert_eq!(Response::ready().to_file(), b"0:Ready\n");
        assert_eq!(
            Response::new(Status::Failure, "a\nb\tc\n").to_string(),
            "2:a b c"
        );
        let passed = vector_add_passed(1024, "cpu executor");
        assert_eq!(
            Response::outcome(&Ok(passed)).to_string(),
            "1:Vector add PASSED: 1024 elements, 0 errors (cpu executor)"
        );
        for bad in [
            &b""[..],
            b"0:Ready",
            b"Ready\n",
            b"3:x\n",
            b":x\n",
            b"0:a\nb\n",
            b"0:\xff\n",
        ] {
            assert_eq!(parse_response(bad), Err(ResponseError), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_command_or_a_reason(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            match parse_command(&bytes) {
                Ok(_) => prop_assert!(bytes.contains(&b'\n')),
                // Messages stay short, whatever a guest writes.
                Err(error) => prop_assert!(error.to_string().len() < MAX_MESSAGE_BYTES),
            }
        }

        #[test]
        fn every_number_is_taken_by_its_value(number in any::<u64>(), zeros in 0usize..20) {
            let text = format!("{}{number}\n", "0".repeat(zeros));
            let expected = match u32::try_from(number) {
                Ok(0) => Ok(Command::Nothing),
                Ok(1) => Ok(Command::VectorAdd),
                Ok(2) => Ok(Command::GpuInfo),
                Ok(other) => Err(CommandError::Unknown(other)),
                Err(_) => Err(CommandError::NumberTooLarge),
            };
            prop_assert_eq!(parse_command(text.as_bytes()), expected);
        }

        #[test]
        fn every_response_reads_back(message in any::<String>(), status in 0..3) {
            let status = [Status::Working, Status::Success, Status::Failure][status as usize];
            let response = Response::new(status, &message);
            let file = response.to_file();
            prop_assert_eq!(file.iter().filter(|b| **b == b'\n').count(), 1);
            prop_assert_eq!(parse_response(&file), Ok(response));
        }

        #[test]
        fn any_bytes_are_a_response_or_none(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            if let Ok(response) = parse_response(&bytes) {
                prop_assert_eq!(response.to_file(), bytes);
            }
        }
    }
}
