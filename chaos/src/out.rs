//! Standard output of the commands: whoever reads it may leave, as `head` does, and that is no mistake of ours.

use std::{
    fmt::Display,
    io::{self, Write},
};

/// Writes a line.
pub fn line(what: impl Display) {
    text(format_args!("{what}\n"));
}

/// Writes a text that ends its own lines.
pub fn text(what: impl Display) {
    told(write_all(&mut io::stdout().lock(), what));
}

fn write_all(to: &mut impl Write, what: impl Display) -> io::Result<()> {
    write!(to, "{what}")?;
    to.flush()
}

fn told(written: io::Result<()>) {
    match written {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            eprintln!("hutong-chaos: cannot write to standard output: {error}");
        }
        Ok(()) | Err(_) => {}
    }
}
