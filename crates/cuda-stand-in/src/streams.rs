//! Streams and events: work in order, done as late as somebody waits for it.

use crate::memory::Memory;
use crate::state::{Answer, Context, call_in_context, give, new_handle};
use cuda_emulator::Emulator;
use cudarc::driver::sys::{CUevent, CUresult, CUstream};
use reattention_cuda::driver::{Address, Driver};
use std::collections::{BTreeMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

/// Work on the device; the text says what went wrong.
type Run = Box<dyn FnOnce(&Emulator) -> Result<(), String> + Send>;

/// What a stream does.
pub(crate) enum Work {
    /// Something on the device.
    Run(Run),
    /// Notes the time in an event.
    Record(usize),
    /// Gives memory of the pool back.
    Free(Address),
}

/// All streams, the null stream (0) among them, and events.
#[derive(Default)]
pub(crate) struct Streams {
    queues: BTreeMap<usize, VecDeque<(u64, Work)>>,
    events: BTreeMap<usize, Event>,
    /// Counts work, over all streams.
    tickets: u64,
}

#[derive(Default)]
struct Event {
    timing: bool,
    /// The stream and the ticket of the last record.
    recorded: Option<(usize, u64)>,
    passed: Option<Instant>,
}

impl Streams {
    pub(crate) fn new() -> Self {
        Self { queues: BTreeMap::from([(0, VecDeque::new())]), ..Self::default() }
    }

    /// What was not destroyed.
    pub(crate) fn left(&self) -> (usize, usize) {
        (self.queues.len() - 1, self.events.len())
    }

    fn push(&mut self, stream: usize, work: Work) -> Answer<u64> {
        let queue = self.queues.get_mut(&stream).ok_or(CUresult::CUDA_ERROR_INVALID_HANDLE)?;
        self.tickets += 1;
        queue.push_back((self.tickets, work));
        Ok(self.tickets)
    }
}

impl Context {
    /// Whether the stream is there.
    pub(crate) fn check_stream(&self, stream: usize) -> Answer {
        self.streams.queues.contains_key(&stream).then_some(()).ok_or(CUresult::CUDA_ERROR_INVALID_HANDLE)
    }

    /// Puts work at the end of a stream.
    pub(crate) fn push(&mut self, stream: usize, work: Work) -> Answer {
        self.streams.push(stream, work).map(drop)
    }

    /// As [`Self::push`], of work on the device; the text says what went wrong.
    pub(crate) fn push_run(
        &mut self,
        stream: usize,
        work: impl FnOnce(&Emulator) -> Result<(), String> + Send + 'static,
    ) -> Answer {
        self.push(stream, Work::Run(Box::new(work)))
    }

    /// Does all that waits on a stream, or what comes up to a ticket.
    pub(crate) fn drain(&mut self, stream: usize, last: Option<u64>) -> Answer {
        loop {
            let queue = self.streams.queues.get_mut(&stream).ok_or(CUresult::CUDA_ERROR_INVALID_HANDLE)?;
            match queue.front() {
                Some((ticket, _)) if last.is_none_or(|last| *ticket <= last) => {}
                _ => return Ok(()),
            }
            let Some((ticket, work)) = queue.pop_front() else { return Ok(()) };
            if let Err(text) = done(work, ticket, &self.emulator, &mut self.streams, &mut self.memory) {
                return Err(self.fail(&text));
            }
        }
    }

    /// Does all that waits anywhere.
    pub(crate) fn drain_all(&mut self) -> Answer {
        let streams: Vec<usize> = self.streams.queues.keys().copied().collect();
        streams.into_iter().try_for_each(|stream| self.drain(stream, None))
    }

    fn fail(&mut self, text: &str) -> CUresult {
        eprintln!("the device failed: {text}");
        let address = text.contains("points to nothing") || text.contains("was written");
        let code =
            if address { CUresult::CUDA_ERROR_ILLEGAL_ADDRESS } else { CUresult::CUDA_ERROR_LAUNCH_FAILED };
        self.failed = Some(code);
        self.streams.queues.values_mut().for_each(VecDeque::clear);
        code
    }
}

fn done(
    work: Work,
    ticket: u64,
    emulator: &Emulator,
    streams: &mut Streams,
    memory: &mut Memory,
) -> Result<(), String> {
    match work {
        Work::Run(work) => catch_unwind(AssertUnwindSafe(|| work(emulator)))
            .unwrap_or_else(|_| Err("the emulator refused".into())),
        Work::Record(event) => {
            if let Some(event) = streams.events.get_mut(&event)
                && event.recorded.is_some_and(|(_, last)| last == ticket)
            {
                event.passed = Some(Instant::now());
            }
            Ok(())
        }
        Work::Free(at) => {
            memory.freed(at);
            // SAFETY: the block came from the emulator, and its owner has given it back.
            catch_unwind(AssertUnwindSafe(|| unsafe { emulator.free(at) }))
                .map_err(|_| format!("memory at {at:#x} cannot be given back"))
        }
    }
}

/// Driver API, stream management.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuStreamCreate(stream: *mut CUstream, flags: u32) -> CUresult {
    call_in_context(|context| {
        if flags > 1 {
            return Err(CUresult::CUDA_ERROR_INVALID_VALUE);
        }
        let handle = new_handle();
        // SAFETY: the caller's promise.
        unsafe { give(stream, handle as CUstream)? };
        context.streams.queues.insert(handle, VecDeque::new());
        Ok(())
    })
}

/// Driver API: what is on the stream is still done.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuStreamDestroy_v2(stream: CUstream) -> CUresult {
    call_in_context(|context| {
        let stream = stream as usize;
        if stream == 0 {
            return Err(CUresult::CUDA_ERROR_INVALID_HANDLE);
        }
        context.drain(stream, None)?;
        context.streams.queues.remove(&stream);
        Ok(())
    })
}

/// Driver API.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuStreamSynchronize(stream: CUstream) -> CUresult {
    call_in_context(|context| {
        context.drain(stream as usize, None)?;
        context.memory.pool_after_wait();
        Ok(())
    })
}

/// Driver API: flags are BLOCKING_SYNC (1), DISABLE_TIMING (2), INTERPROCESS (4, only with 2).
#[unsafe(no_mangle)]
unsafe extern "C" fn cuEventCreate(event: *mut CUevent, flags: u32) -> CUresult {
    call_in_context(|context| {
        if flags > 7 || flags & 6 == 4 {
            return Err(CUresult::CUDA_ERROR_INVALID_VALUE);
        }
        let handle = new_handle();
        // SAFETY: the caller's promise.
        unsafe { give(event, handle as CUevent)? };
        context.streams.events.insert(handle, Event { timing: flags & 2 == 0, ..Event::default() });
        Ok(())
    })
}

/// Driver API: an event may go before it has passed.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuEventDestroy_v2(event: CUevent) -> CUresult {
    call_in_context(|context| {
        let gone = context.streams.events.remove(&(event as usize));
        gone.map(drop).ok_or(CUresult::CUDA_ERROR_INVALID_HANDLE)
    })
}

/// Driver API.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuEventRecord(event: CUevent, stream: CUstream) -> CUresult {
    call_in_context(|context| {
        let (event, stream) = (event as usize, stream as usize);
        if !context.streams.events.contains_key(&event) {
            return Err(CUresult::CUDA_ERROR_INVALID_HANDLE);
        }
        let ticket = context.streams.push(stream, Work::Record(event))?;
        if let Some(event) = context.streams.events.get_mut(&event) {
            (event.recorded, event.passed) = (Some((stream, ticket)), None);
        }
        Ok(())
    })
}

/// Driver API: an event that was never recorded has passed.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuEventSynchronize(event: CUevent) -> CUresult {
    call_in_context(|context| {
        let event = context.streams.events.get(&(event as usize));
        let event = event.ok_or(CUresult::CUDA_ERROR_INVALID_HANDLE)?;
        match event.recorded {
            Some((stream, ticket)) if event.passed.is_none() => context.drain(stream, Some(ticket)),
            _ => Ok(()),
        }
    })
}

/// Driver API: both events must have been recorded, with their times, and have passed.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuEventElapsedTime(milliseconds: *mut f32, start: CUevent, end: CUevent) -> CUresult {
    call_in_context(|context| {
        let event = |event: CUevent| {
            let event = context.streams.events.get(&(event as usize));
            let event = event.filter(|event| event.timing && event.recorded.is_some());
            event.ok_or(CUresult::CUDA_ERROR_INVALID_HANDLE)
        };
        let (start, end) = (event(start)?, event(end)?);
        let (Some(start), Some(end)) = (start.passed, end.passed) else {
            return Err(CUresult::CUDA_ERROR_NOT_READY);
        };
        let seconds = end.saturating_duration_since(start).as_secs_f32()
            - start.saturating_duration_since(end).as_secs_f32();
        // SAFETY: the caller's promise.
        unsafe { give(milliseconds, seconds * 1e3) }
    })
}
