//! The command line.

/// What `--help` prints.
pub const USAGE: &str = "\
usage: trunkline-bench [--quick] [--json] [--rounds N] [--only TEXT] | --list | --help

  --quick      a smoke run of a few seconds; proves that it works, its figures mean nothing
  --json       JSON on standard output, instead of a table
  --rounds N   rounds of each side, at least 5 (default 7)
  --only TEXT  only the pairs with TEXT in their name
  --list       the names of the pairs
";

const ROUNDS: usize = 7;
const ROUNDS_MIN: usize = 5;
const ROUNDS_QUICK: usize = 2;

pub enum Command {
    Help,
    List,
    Compare(Options),
    /// Run one round of one side and print the peak: how the benchmark calls itself.
    PeakMemory {
        pair: String,
        side: SideName,
        quick: bool,
    },
}

pub struct Options {
    pub quick: bool,
    pub json: bool,
    pub rounds: usize,
    pub only: String,
}

#[derive(Clone, Copy, Debug)]
pub enum SideName {
    Baseline,
    Ours,
}

impl SideName {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Baseline => "baseline",
            Self::Ours => "ours",
        }
    }

    fn parse(text: &str) -> Option<Self> {
        [Self::Baseline, Self::Ours]
            .into_iter()
            .find(|side| side.as_str() == text)
    }
}

/// Reads the arguments.
///
/// # Errors
///
/// An unknown or incomplete argument, in words.
pub fn parse(args: &[String]) -> Result<Command, String> {
    let mut options = Options {
        quick: false,
        json: false,
        rounds: 0,
        only: String::new(),
    };
    let mut peak = None;
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        let mut value = || {
            args.next()
                .cloned()
                .ok_or_else(|| format!("{arg} needs a value"))
        };
        match arg.as_str() {
            "--help" | "-h" => return Ok(Command::Help),
            "--list" => return Ok(Command::List),
            "--quick" => options.quick = true,
            "--json" => options.json = true,
            "--only" => options.only = value()?,
            "--rounds" => {
                let rounds = value()?;
                options.rounds = rounds
                    .parse()
                    .ok()
                    .filter(|&rounds| rounds >= ROUNDS_MIN)
                    .ok_or_else(|| {
                        format!("--rounds is a number of at least {ROUNDS_MIN}, not {rounds:?}")
                    })?;
            }
            "--peak-memory-of" => {
                let pair = value()?;
                peak = Some((
                    pair,
                    SideName::parse(&value()?).ok_or("a side is `baseline` or `ours`")?,
                ));
            }
            _ => return Err(format!("unknown argument {arg:?}")),
        }
    }
    if let Some((pair, side)) = peak {
        return Ok(Command::PeakMemory {
            pair,
            side,
            quick: options.quick,
        });
    }
    if options.rounds == 0 {
        options.rounds = if options.quick { ROUNDS_QUICK } else { ROUNDS };
    }
    Ok(Command::Compare(options))
}
