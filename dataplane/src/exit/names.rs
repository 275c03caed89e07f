//! Names that are being resolved, and the datagrams that wait for the answers.

use hashbrown::HashMap;
use wire::ids::ChannelIndex;

use crate::Nanos;
use crate::ledger::DropReason;
use crate::socket::app_batch::FlowId;

/// The maximum of names that are being resolved.
pub const QUESTIONS_MAX: usize = 256;
/// Datagrams that wait for the name of one flow. No flow's room is another's: those of all names, with 10,560 bytes at
/// most in class L, take 43 MB.
pub(super) const WAITING_PER_FLOW: usize = 16;

/// Names a question in its answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct QueryId(pub u32);

/// A question to the resolver. Its flow and its channel may end before the answer comes.
pub(super) struct Question {
    pub(super) flow: Option<FlowId>,
    pub(super) channel: Option<ChannelIndex>,
}

/// A datagram that waits for a name.
pub(super) struct Waiting {
    pub(super) arrived: Nanos,
    pub(super) data: Vec<u8>,
}

#[derive(Default)]
pub(super) struct Names {
    questions: HashMap<QueryId, Question, foldhash::fast::RandomState>,
    next: QueryId,
    waiting: usize,
}

impl Names {
    pub(super) fn len(&self) -> usize {
        self.questions.len()
    }

    pub(super) fn waiting(&self) -> usize {
        self.waiting
    }

    /// The number for the next question.
    pub(super) fn draw(&mut self) -> QueryId {
        let query = self.next;
        self.next = QueryId(query.0.wrapping_add(1));
        query
    }

    pub(super) fn ask(&mut self, query: QueryId, flow: FlowId, channel: ChannelIndex) {
        self.questions.insert(query, Question { flow: Some(flow), channel: Some(channel) });
    }

    pub(super) fn answer(&mut self, query: QueryId) -> Option<Question> {
        self.questions.remove(&query)
    }

    /// The flow of a question has ended. The resolver still works on it, and its answer will come.
    pub(super) fn forget_flow(&mut self, query: QueryId) {
        if let Some(question) = self.questions.get_mut(&query) {
            question.flow = None;
        }
    }

    /// The flows whose names are being resolved.
    pub(super) fn flows(&self) -> Vec<FlowId> {
        self.questions.values().filter_map(|question| question.flow).collect()
    }

    pub(super) fn forget_channel(&mut self, channel: ChannelIndex) {
        for question in self.questions.values_mut() {
            question.channel.take_if(|of| *of == channel);
        }
    }

    /// Appends a datagram to the queue of a flow.
    ///
    /// # Errors
    /// The queue is full.
    pub(super) fn wait(&mut self, queue: &mut Vec<Waiting>, data: &[u8], now: Nanos) -> Result<(), DropReason> {
        if queue.len() >= WAITING_PER_FLOW {
            return Err(DropReason::FlowQueueFull);
        }
        queue.push(Waiting { arrived: now, data: data.to_vec() });
        self.waiting += 1;
        Ok(())
    }

    /// `count` datagrams have left a queue.
    pub(super) fn waited(&mut self, count: usize) {
        self.waiting -= count;
    }
}
