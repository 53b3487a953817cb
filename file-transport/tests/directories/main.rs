//! The file protocol and sessions over files, in real directories and in a model of one.

mod hostile_directory;
mod served;
mod session_hostile;
mod session_model;
mod session_stream;
mod shell_client;
