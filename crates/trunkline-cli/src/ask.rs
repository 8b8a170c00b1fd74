//! Asking people before something is done that cannot be undone.

use std::io::{BufRead, IsTerminal};

use trunkline::{Error, ErrorKind, Result};

use crate::console::Console;

/// Asks a question, and gives whether the answer is yes.
///
/// # Errors
/// [`ErrorKind::InvalidConfig`] beginning with `unasked`, which says what is at stake, where there
/// is nobody to ask.
pub(crate) async fn agreed(console: &mut Console, question: &str, unasked: &str) -> Result<bool> {
    if !std::io::stdin().is_terminal() || !std::io::stderr().is_terminal() {
        return Err(Error::new(
            ErrorKind::InvalidConfig,
            format!("{unasked}, and there is nobody to ask; add --yes if that is meant"),
        ));
    }
    console.ask(&format!("{question} [y/N]"));
    answer().await
}

/// Waits for a line on standard input, on a thread that ends with the process if nobody answers.
async fn answer() -> Result<bool> {
    let (sender, receiver) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || {
        let mut answer = String::new();
        let read = std::io::stdin().lock().read_line(&mut answer);
        // Whoever asked may have been interrupted.
        let _ = sender.send(read.map(|_| answer));
    });
    let unread =
        |error| Error::new(ErrorKind::Internal, "the answer cannot be read").caused_by(error);
    let answer = receiver
        .await
        .map_err(|_| Error::new(ErrorKind::Internal, "the answer was lost"))?;
    let answer = answer.map_err(unread)?;
    Ok(matches!(
        answer.trim().to_ascii_lowercase().as_str(),
        "y" | "yes"
    ))
}
