//! The command socket of a running entry: `eddy forward` adds, removes and lists forwards through it.
//!
//! A client sends one line of JSON and gets one line of JSON; then the connection ends. Whoever may write to this
//! socket controls the entry. It therefore has mode 0600 and is not the status socket, which accepts no commands.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::config::{ClassName, Forward, NotAClassName, NotATarget, Target, parse_idle, parse_max_age};
use crate::runtime::listeners::Listeners;
use crate::runtime::local::{Bound, Server, read_answer};

/// Longest request.
const REQUEST_MAX: u64 = 4096;
/// Longest time that a client waits for an answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// A request to an entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// Add a forward.
    Add(ForwardInfo),
    /// Remove a forward.
    Remove {
        /// Address at which the entry listens.
        listen: SocketAddr,
    },
    /// List all forwards.
    List,
}

/// A forward in requests and answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ForwardInfo {
    /// Address at which the entry listens.
    pub listen: SocketAddr,
    /// Destination of the exit, `HOST:PORT`; or `meet:@FILE`, the other user of a meeting.
    pub to: String,
    /// Flows are closed after this time without a datagram from the client; default: the entry's `flow_idle_s`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle_s: Option<u64>,
    /// Datagrams that have waited for longer at the entry are dropped; default: the entry's `max_age_ms`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_age_ms: Option<u64>,
    /// Class of its cells; default: the chain's first one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub class: Option<String>,
}

/// The answer to a [`Request`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// Success: the forwards that were added or removed, or all of them.
    Forwards(Vec<ForwardInfo>),
    /// Failure, with the reason.
    Refused(String),
}

impl From<&Forward> for ForwardInfo {
    fn from(Forward { listen, to, idle, max_age, class }: &Forward) -> ForwardInfo {
        ForwardInfo {
            listen: *listen,
            to: to.to_string(),
            idle_s: idle.map(|idle| idle.as_secs()),
            max_age_ms: max_age.map(|max_age| max_age.as_millis() as u64),
            class: class.as_ref().map(ClassName::to_string),
        }
    }
}

/// The forwards of an entry.
pub struct Forwards {
    /// The chain's first class.
    pub first: ClassName,
    /// The classes of the chain, and whether each is paced.
    pub of_chain: Vec<(ClassName, bool)>,
    /// The listening sockets of classes that serve destinations.
    pub classes: Vec<(ClassName, Listeners)>,
    /// Those to meetings, with their class. They stay as they are.
    pub meetings: Vec<Forward>,
}

/// Serves requests at the socket, about these forwards.
///
/// # Errors
/// No thread or no descriptors left.
pub fn serve(bound: Bound, forwards: Forwards) -> io::Result<Server> {
    bound.serve("console", move |mut client| {
        let mut line = String::new();
        BufReader::new(client.try_clone()?.take(REQUEST_MAX)).read_line(&mut line)?;
        let reply = match serde_json::from_str(&line) {
            Ok(request) => answer(request, &forwards),
            Err(why) => Answer::Refused(format!("invalid request: {why}")),
        };
        let mut line = serde_json::to_vec(&reply).map_err(io::Error::other)?;
        line.push(b'\n');
        client.write_all(&line)
    })
}

fn answer(request: Request, forwards: &Forwards) -> Answer {
    let Forwards { of_chain, classes, meetings, .. } = forwards;
    match request {
        Request::Add(wanted) => match add(wanted, forwards) {
            Ok(forward) => {
                tracing::info!("forward {}={} added", forward.listen, forward.to);
                Answer::Forwards(vec![(&forward).into()])
            }
            Err(why) => Answer::Refused(why),
        },
        Request::Remove { listen } => match classes.iter().find_map(|(_, listeners)| listeners.remove(listen)) {
            Some(forward) => {
                tracing::info!("forward {}={} removed", forward.listen, forward.to);
                Answer::Forwards(vec![(&forward).into()])
            }
            None if meetings.iter().any(|meeting| meeting.listen == listen) => Answer::Refused(format!(
                "the forward on {listen} is a meeting, which lasts as long as the entry: restart it without this forward"
            )),
            None => Answer::Refused(format!("no forward listens at {listen}: `eddy forward list` prints all forwards")),
        },
        Request::List => {
            let names_classes = classes.len() + meetings.len() > 1 || of_chain.iter().any(|(_, is_paced)| *is_paced);
            let of_class = |(class, listeners): &(ClassName, Listeners)| {
                let class = names_classes.then(|| class.clone());
                listeners
                    .forwards()
                    .into_iter()
                    .map(move |(_, forward)| (&Forward { class: class.clone(), ..forward }).into())
            };
            let to_destinations = classes.iter().flat_map(of_class);
            Answer::Forwards(to_destinations.chain(meetings.iter().map(ForwardInfo::from)).collect())
        }
    }
}

/// Adds a forward to the class that it names, or to the chain's first one.
fn add(wanted: ForwardInfo, forwards: &Forwards) -> Result<Forward, String> {
    let ForwardInfo { listen, to, idle_s, max_age_ms, class } = wanted;
    let to = to.parse().map_err(|why: NotATarget| why.to_string())?;
    let (idle, max_age) = (idle_s.map(parse_idle).transpose()?, max_age_ms.map(parse_max_age).transpose()?);
    let class: Option<ClassName> =
        class.map(|class| class.parse()).transpose().map_err(|why: NotAClassName| why.to_string())?;
    let Forwards { first, of_chain, classes, meetings } = forwards;
    let name = class.as_ref().unwrap_or(first);
    let meeting = meetings.iter().find(|meeting| meeting.class.as_ref() == Some(name));
    if let (Target::Meeting(_), Some(Forward { listen, to, .. })) = (&to, meeting) {
        return Err(format!(
            "class {name} serves the meeting on {listen} already: for another secret write it to the file ({to}) and send \
             the entry SIGHUP; for another meeting at the same time run a second entry"
        ));
    }
    let list = |all: &mut dyn Iterator<Item = &ClassName>| all.map(ClassName::as_str).collect::<Vec<_>>().join(", ");
    if !of_chain.iter().any(|(one, _)| one == name) {
        let all = list(&mut of_chain.iter().map(|(one, _)| one));
        return Err(format!("the chain does not have class {name}: name one of {all}"));
    }
    if let Target::Meeting(_) = to {
        let mut paced = of_chain.iter().filter(|(_, is_paced)| *is_paced).map(|(one, _)| one);
        let is_paced = of_chain.contains(&(name.clone(), true));
        let Some(class) = is_paced.then_some(name).or_else(|| paced.next()) else {
            return Err("a meeting needs a paced class, which this chain does not have: use another chain".to_owned());
        };
        return Err(format!(
            "a meeting is chosen when the entry starts: restart it with `--forward {listen}={to},class={class}`, or with this \
             forward and `class = \"{class}\"` in its configuration"
        ));
    }
    let found = classes.iter().find(|(one, _)| one == name);
    let (_, listeners) = found.ok_or_else(|| match meeting {
        Some(Forward { listen, .. }) => {
            format!("class {name} serves the meeting on {listen}, and no destinations: name another class of the chain")
        }
        None => {
            let served = list(&mut classes.iter().map(|(one, _)| one));
            let named = if served.is_empty() { String::new() } else { format!("name one that it serves ({served}), or ") };
            format!(
                "this entry serves no destinations in class {name}: {named}add a table [class.{name}] to its configuration and \
                 restart it"
            )
        }
    })?;
    listeners.add(Forward { listen, to, idle, max_age, class }).map_err(|why| why.to_string())
}

/// Sends a request to a running entry.
///
/// # Errors
/// No entry answers, or the answer cannot be parsed.
pub fn ask(path: &Path, request: &Request) -> io::Result<Answer> {
    let mut socket = UnixStream::connect(path)?;
    socket.set_write_timeout(Some(ANSWER_TIMEOUT))?;
    let mut line = serde_json::to_vec(request).map_err(io::Error::other)?;
    line.push(b'\n');
    socket.write_all(&line)?;
    read_answer(&mut socket, ANSWER_TIMEOUT)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    use crate::config::Location;
    use crate::config::class_name::tests::payload_of;
    use crate::runtime::listeners::Times;
    use dataplane::sys::Waker;
    use wire::cell::Class;

    #[test]
    fn console_adds_lists_removes_and_refuses_junk() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("entry.cmd");
        let waker = Arc::new(Waker::new().unwrap());
        let times = Times { idle: Duration::from_secs(300), max_age: Duration::from_millis(250) };
        let listeners = Listeners::new(payload_of(Class::L), times, &[], waker.clone()).unwrap();
        let bound = Bound::new(&path, "commands", &Location::file(Path::new("entry.toml"))).unwrap();
        let other = Listeners::new(payload_of(Class::S), times, &[], waker).unwrap();
        let classes = vec![(Class::L.into(), listeners.clone()), (Class::S.into(), other.clone())];
        let of_chain = [Class::S, Class::M, Class::L].map(|class| (class.into(), false)).to_vec();
        let _server =
            serve(bound, Forwards { first: Class::L.into(), of_chain, classes, meetings: Vec::new() }).unwrap();

        let told = |listen: &str, to: &str, idle_s| ForwardInfo {
            listen: listen.parse().unwrap(),
            to: to.into(),
            idle_s,
            max_age_ms: None,
            class: None,
        };
        let Answer::Forwards(added) = ask(&path, &Request::Add(told("127.0.0.1:0", "a.example:53", None))).unwrap()
        else {
            panic!("refused");
        };
        assert!(added[0].listen.port() != 0 && added[0].to == "a.example:53" && added[0].idle_s == Some(300));
        assert!(listeners.next_command().is_some());
        let of_class = |class: &str| ForwardInfo { class: Some(class.to_owned()), ..added[0].clone() };
        assert_eq!(ask(&path, &Request::List).unwrap(), Answer::Forwards(vec![of_class("L")]));
        let refused = |request: &Request| match ask(&path, request).unwrap() {
            Answer::Refused(why) => why,
            Answer::Forwards(forwards) => panic!("done: {forwards:?}"),
        };
        let why = refused(&Request::Add(ForwardInfo { listen: "127.0.0.1:0".parse().unwrap(), ..of_class("M") }));
        assert!(why.contains("add a table [class.M]"), "{why}");
        let in_s = ForwardInfo { listen: "127.0.0.1:0".parse().unwrap(), ..of_class("S") };
        let Answer::Forwards(in_s) = ask(&path, &Request::Add(in_s)).unwrap() else { panic!("refused") };
        assert!(other.next_command().is_some() && listeners.next_command().is_none());
        ask(&path, &Request::Remove { listen: in_s[0].listen }).unwrap();
        assert!(other.forwards().is_empty());
        let why = refused(&Request::Add(told("127.0.0.1:0", "nowhere", None)));
        assert!(why.contains("nowhere"), "{why}");
        assert!(refused(&Request::Add(told("192.0.2.1:1", "a.example:53", None))).contains("192.0.2.1"));
        let gone = Request::Remove { listen: added[0].listen };
        assert_eq!(ask(&path, &gone).unwrap(), Answer::Forwards(added));
        assert!(refused(&gone).contains("no forward listens"));

        for junk in ["", "\n", "stop\n", "{\"add\":{}}\n", "{\"list\":1}\n", "{\"shutdown\":null}\n"] {
            let mut client = UnixStream::connect(&path).unwrap();
            client.write_all(junk.as_bytes()).unwrap();
            client.shutdown(std::net::Shutdown::Write).unwrap();
            let mut answer = String::new();
            client.read_to_string(&mut answer).unwrap();
            assert!(answer.contains("refused"), "{junk:?}: {answer}");
        }
        assert_eq!(ask(&path, &Request::List).unwrap(), Answer::Forwards(Vec::new()));
    }

    #[test]
    fn meetings_are_listed_and_not_added_or_removed() {
        let meeting: Forward = "127.0.0.1:5000=meet:@call.secret,class=voice".parse().unwrap();
        let of_chain = vec![(Class::L.into(), false), ("voice".parse().unwrap(), true)];
        let forwards =
            Forwards { first: Class::L.into(), of_chain, classes: Vec::new(), meetings: vec![meeting.clone()] };
        let info = |text: &str| ForwardInfo::from(&text.parse::<Forward>().unwrap());
        let Answer::Forwards(listed) = answer(Request::List, &forwards) else { panic!("refused") };
        assert_eq!(listed, [info("127.0.0.1:5000=meet:@call.secret,class=voice")]);

        let refused = |request| match answer(request, &forwards) {
            Answer::Refused(why) => why,
            Answer::Forwards(forwards) => panic!("done: {forwards:?}"),
        };
        let gone = refused(Request::Remove { listen: meeting.listen });
        assert!(gone.contains("is a meeting") && gone.contains("restart it without this forward"), "{gone}");
        for (wanted, remedy) in [
            ("5001=meet:@b.secret,class=voice", "another secret write it to the file (meet:@call.secret)"),
            ("5001=meet:@b.secret", "restart it with `--forward 127.0.0.1:5001=meet:@b.secret,class=voice`"),
            (
                "5001=a.example:53,class=voice",
                "serves the meeting on 127.0.0.1:5000, and no destinations: name another",
            ),
            ("5001=a.example:53", "no destinations in class L: add a table [class.L]"),
            ("5001=a.example:53,class=game", "the chain does not have class game: name one of L, voice"),
        ] {
            let why = refused(Request::Add(info(wanted)));
            assert!(why.contains(remedy), "{wanted}: {why}");
        }
    }
}
