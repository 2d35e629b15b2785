//! What the command line tells when something fails: a stable code, a sentence, a fix, and the
//! exit code that follows from it. `docs/errors.md` lists the codes for people.

use std::fmt;
use std::io;

use meshwork_identity::TokenError;
use meshwork_mesh::MeshError;
use meshwork_proto::manager::STATUS_NOT_PLACED;
use meshwork_proto::{RpcError, Status};

use super::out::clean;

/// Exit codes (`market.md` §5). Attached runs and `exec` end with the container's own code.
pub(crate) const EXIT_ERROR: u8 = 1;
/// No node fits.
pub(crate) const EXIT_NOT_PLACED: u8 = 2;
/// No token allows it.
pub(crate) const EXIT_DENIED: u8 = 3;
/// The peer cannot be reached.
pub(crate) const EXIT_UNREACHABLE: u8 = 4;

/// The stable code of an error: `E204`. A number is never given to another meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Code(u16);

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $number:literal;)*) => {
        impl Code {
            $($(#[$doc])* pub(crate) const $name: Self = Self($number);)*
            /// Every code, in order.
            #[cfg(test)]
            const ALL: &[Self] = &[$(Self::$name),*];
        }
    };
}

codes! {
    /// The command line does not parse.
    USAGE = 100;
    /// The home folder holds no mesh.
    NO_MESH = 101;
    /// The home folder holds a mesh already.
    MESH_EXISTS = 102;
    /// A configuration file is wrong.
    CONFIG = 103;
    /// A key, PSK or token file is missing, unreadable or readable by others.
    KEY_FILE = 104;
    /// A node of this home runs already.
    RUNNING = 105;
    /// A value on the command line is wrong.
    VALUE = 106;
    /// A file or the terminal failed.
    IO = 107;
    /// The node could not start.
    START = 108;
    /// No container backend answers.
    NO_BACKEND = 109;
    /// Some check of `doctor` failed.
    UNHEALTHY = 110;
    /// No node fits the request now.
    NOT_PLACED = 201;
    /// The specification cannot be run anywhere.
    SPEC = 202;
    /// No such session, node or object.
    NOT_FOUND = 203;
    /// The image could not be fetched.
    IMAGE = 204;
    /// Slots, disk or quota are used up.
    EXHAUSTED = 205;
    /// The request contradicts the state of its object.
    CONFLICT = 206;
    /// The container did not start.
    NOT_STARTED = 207;
    /// The container was lost with its node, or replaced by a newer one.
    LOST = 208;
    /// The call was given up.
    CANCELLED = 209;
    /// The request is malformed.
    INVALID = 210;
    /// No valid token was presented.
    NO_TOKEN = 301;
    /// The token does not allow this.
    DENIED = 302;
    /// The token, or the ticket, expired.
    EXPIRED = 303;
    /// The token was revoked.
    REVOKED = 304;
    /// The token does not hold for another reason.
    TOKEN = 305;
    /// The ticket is refused.
    TICKET = 306;
    /// No path to the peer.
    NO_ROUTE = 401;
    /// The peer did not answer in time.
    TIMEOUT = 402;
    /// The peer cannot do it now.
    UNAVAILABLE = 403;
    /// The peer sheds load.
    BACKPRESSURE = 404;
    /// No manager or node to call is known.
    NO_SERVER = 405;
    /// A fault in Meshwork.
    INTERNAL = 500;
}

impl Code {
    /// The exit code that goes with it.
    pub(crate) fn exit(self) -> u8 {
        match self {
            Self::NOT_PLACED => EXIT_NOT_PLACED,
            Self(300..400) => EXIT_DENIED,
            Self(400..500) => EXIT_UNREACHABLE,
            _ => EXIT_ERROR,
        }
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "E{}", self.0)
    }
}

/// A failed command.
#[derive(Debug)]
pub(crate) struct CliError {
    /// Which.
    pub code: Code,
    /// One sentence: the thing and the cause.
    pub message: String,
    /// What the reader can do.
    pub fix: Option<String>,
}

impl CliError {
    /// An error with its sentence.
    pub(crate) fn new(code: Code, message: impl fmt::Display) -> Self {
        Self {
            code,
            message: message.to_string(),
            fix: None,
        }
    }

    /// The same error with what can be done about it.
    #[must_use]
    pub(crate) fn fix(mut self, fix: impl fmt::Display) -> Self {
        self.fix = Some(fix.to_string());
        self
    }

    /// The error that a meshwork process printed last on its standard error.
    pub(crate) fn from_printed(text: &str) -> Option<Self> {
        const HEAD: &str = "error[E";
        let (start, _) = text
            .rmatch_indices(HEAD)
            .find(|(at, _)| *at == 0 || text[..*at].ends_with('\n'))?;
        let (number, rest) = text[start + HEAD.len()..].split_once("] ")?;
        let parts = rest.rsplit_once(". fix: ");
        let (message, fix) = match parts.or_else(|| rest.rsplit_once("\nfix: ")) {
            Some((message, fix)) => (message, Some(fix.trim_end().to_owned())),
            None => (rest, None),
        };
        Some(Self {
            code: Code(number.parse().ok()?),
            message: message.trim_end().trim_end_matches('.').to_owned(),
            fix,
        })
    }

    /// A file that could not be used.
    pub(crate) fn file(path: &std::path::Path, error: &io::Error) -> Self {
        Self::new(Code::IO, format!("{}: {error}", path.display()))
    }
}

/// `error[E204] sentence. fix: …`, or where the message has more lines (a caret under a column, a
/// reason for each node), the fix on a line of its own.
impl fmt::Display for CliError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let message = self.message.trim_end().trim_end_matches('.');
        let mut lines = message.lines();
        write!(
            f,
            "error[{}] {}",
            self.code,
            clean(lines.next().unwrap_or_default())
        )?;
        let mut gap = ". ";
        for line in lines {
            write!(f, "\n{}", clean(line))?;
            gap = "\n";
        }
        match &self.fix {
            Some(fix) => write!(f, "{gap}fix: {}", clean(fix)),
            None => f.write_str(gap.trim_end()),
        }
    }
}

impl From<RpcError> for CliError {
    fn from(error: RpcError) -> Self {
        let code = rpc_code(error.status, &error.reason);
        let fix = error.fix.or_else(|| default_fix(code).map(str::to_owned));
        Self {
            code,
            message: error.message,
            fix,
        }
    }
}

fn rpc_code(status: Status, reason: &str) -> Code {
    match (status, reason) {
        (Status::App(STATUS_NOT_PLACED), _) => Code::NOT_PLACED,
        (Status::Unauthenticated | Status::Denied, reason) => denial_code(status, reason),
        (Status::Invalid, "spec" | "query") => Code::SPEC,
        (Status::Invalid, _) => Code::INVALID,
        (Status::NotFound, _) => Code::NOT_FOUND,
        (Status::ResourceExhausted, _) => Code::EXHAUSTED,
        (Status::Conflict, _) => Code::CONFLICT,
        (Status::Cancelled, _) => Code::CANCELLED,
        (Status::Timeout, _) | (Status::NoRoute, "no_answer") => Code::TIMEOUT,
        (Status::NoRoute, _) => Code::NO_ROUTE,
        (Status::Unavailable, _) => Code::UNAVAILABLE,
        (Status::Backpressure, _) => Code::BACKPRESSURE,
        (Status::Internal | Status::App(_), _) => Code::INTERNAL,
    }
}

/// The reasons are the kinds of `TokenError` and what the admission of newcomers says.
fn denial_code(status: Status, reason: &str) -> Code {
    match reason {
        "expired" | "ticket_expired" | "order_expired" => Code::EXPIRED,
        "revoked" => Code::REVOKED,
        "malformed" | "invalid_signature" | "untrusted_root" | "not_yet_valid"
        | "wrong_subject" => Code::TOKEN,
        reason if reason.starts_with("ticket_") => Code::TICKET,
        _ if status == Status::Unauthenticated => Code::NO_TOKEN,
        _ => Code::DENIED,
    }
}

fn default_fix(code: Code) -> Option<&'static str> {
    Some(match code {
        Code::NO_TOKEN | Code::DENIED => {
            "ask an admin of the mesh for a token: meshwork invite --role user"
        }
        Code::EXPIRED => "ask an admin of the mesh for a new ticket or token",
        Code::NO_ROUTE | Code::TIMEOUT => "meshwork doctor",
        Code::BACKPRESSURE | Code::UNAVAILABLE => "try again in a moment",
        _ => return None,
    })
}

impl From<MeshError> for CliError {
    fn from(error: MeshError) -> Self {
        match error {
            MeshError::Bind(_) => Self::new(Code::START, chain(&error))
                .fix("another node may use the port: --listen [::]:PORT"),
            MeshError::Rpc(error) => error.into(),
            MeshError::Timeout { node, after } => Self::new(
                Code::TIMEOUT,
                format_args!("node {} did not answer within {:.0} s", node.short(), after.as_secs_f64()),
            )
            .fix("is it up, and its UDP port open? it is silent to other pre-shared keys: meshwork doctor"),
            error => {
                let text = chain(&error);
                Self { message: text, ..RpcError::from(error).into() }
            }
        }
    }
}

/// An error and what caused it.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

impl From<TokenError> for CliError {
    fn from(error: TokenError) -> Self {
        let code = match error.kind() {
            "expired" => Code::EXPIRED,
            "revoked" => Code::REVOKED,
            _ => Code::TOKEN,
        };
        Self::new(code, error)
    }
}

/// A closed pipe gets no message: who would read on has gone (`meshwork logs … | head`).
impl From<io::Error> for CliError {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe {
            return Self::new(Code::IO, "");
        }
        Self::new(Code::IO, error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_is_documented_and_none_is_used_twice() {
        let docs = include_str!("../../docs/errors.md");
        for pair in Code::ALL.windows(2) {
            assert!(pair[0] < pair[1], "{} before {}", pair[0], pair[1]);
        }
        for code in Code::ALL {
            let row = format!("| {code} | {} |", code.exit());
            assert!(docs.contains(&row), "docs/errors.md lacks `{row}`");
        }
        let rows = docs.lines().filter(|line| line.starts_with("| E")).count();
        assert_eq!(
            rows,
            Code::ALL.len(),
            "docs/errors.md has a code that does not exist"
        );
    }

    #[test]
    fn every_status_leads_to_the_exit_code_that_scripts_expect() {
        for (status, exit) in [
            (Status::App(STATUS_NOT_PLACED), 2),
            (Status::Unauthenticated, 3),
            (Status::Denied, 3),
            (Status::NoRoute, 4),
            (Status::Timeout, 4),
            (Status::Unavailable, 4),
            (Status::Backpressure, 4),
            (Status::Invalid, 1),
            (Status::Internal, 1),
        ] {
            let error = CliError::from(RpcError::new(status, "x"));
            assert_eq!(error.code.exit(), exit, "{status}");
        }
    }

    #[test]
    fn a_printed_error_is_read_back() {
        let log = |error: &CliError| format!("2026 WARN error[E1] noise\n{error}\n");
        for (message, fix) in [
            ("no port", Some("--listen")),
            ("no port", None),
            ("column 3\n  a b\n    ^", Some("x")),
        ] {
            let mut error = CliError::new(Code::START, message);
            error.fix = fix.map(str::to_owned);
            let read = CliError::from_printed(&log(&error)).unwrap();
            assert_eq!(
                (read.code, &*read.message, read.fix.as_deref()),
                (Code::START, message, fix)
            );
        }
        assert!(CliError::from_printed("no error[E108] here").is_none());
    }

    #[test]
    fn hostile_text_does_not_reach_the_terminal() {
        let error = CliError::new(Code::DENIED, "no \u{1b}[2J\u{202e}way.\n").fix("try\u{7}");
        assert_eq!(error.to_string(), "error[E302] no [2Jway. fix: try");
        let error = CliError::new(Code::SPEC, "column 3\n  a b\u{1b}\n    ^").fix("x");
        assert_eq!(
            error.to_string(),
            "error[E202] column 3\n  a b\n    ^\nfix: x"
        );
    }
}
