"""How much pgwal takes of a machine: the constants of memory, parallelism and time, each with its reason.

Formats have theirs beside what reads and writes them, and so have the limits of what is read from elsewhere.  So have
the compiled modules (those with a .pxd), for whose compiler a constant must be one.  docs/scale.md adds up what
a command holds.  Sizes are in bytes, times in seconds.
"""

# ---- memory: what is read, kept or sent at once, in bytes
READ_BYTES = 1 << 20
"""Of a file at a time: larger pieces leave a processor's caches, smaller ones are more calls. Blocks fit in whole."""
BLOCKS_AT_ONCE = 32
"""Blocks that lie apart are read by one call: so many are a quarter of READ_BYTES."""
WRITE_SIZE = 1 << 20
"""What is best written at a time: less has a disk wait between writes, more leaves a processor's caches. Smaller files
go through the page cache: there are many, and a file system makes several durable in one go."""
HOLE_BYTES = 1 << 16
"""What is left out of a file at least: smaller holes would scatter it over the disk once it is filled."""
WRITEBACK_BYTES = 8 << 20
"""After so much has been written the disk is to begin with it: it is not idle until the sync."""
SMALL_FILE_BYTES = 1 << 17
"""Of files of which no more is wanted, a group is read at once, and then written at once."""
GROUP_BYTES = 1 << 20
"""Such a group has no more: it is held as a whole."""
GROUP_FILES = 32
"""Nor more files than this, which are open all at once."""
PART_BYTES = 2 << 20
"""Of a segment. Larger pieces leave the caches; handing one to another thread costs as much as reading half a
megabyte."""
PARTS_AHEAD = 3
"""Of these parts one more would leave the caches; with fewer, reading and scanning wait for each other."""
FIRST_PART_BYTES = 64 << 10
"""Of a segment that is read from somewhere within: often but one record is wanted."""
SCAN_BYTES = 1 << 18
"""Given to the scanner at a time where it looks for the end of WAL in a segment."""
WAL_PIECE_BYTES = 64 << 20
"""What one worker reads of WAL at a time; with it, and the number of workers, memory is bounded. Less would be opened
more often than read."""
SUMMARY_PIECE_BYTES = 256 << 20
"""Much beside what is read twice: a segment before PostgreSQL 17, up to a checkpoint's WAL from then on."""
BACKUP_PIECE_BYTES = 64 << 20
"""A piece of a backup that has so many bytes gets no more files."""
COMPRESSED_READ_BYTES = 1024
"""Small, because a piece of zeros that has been compressed becomes a thousand times as large."""
INFLATED_READ_BYTES = 4096
"""Little at a time, too: of some bytes may become a thousand times as many, or more."""
HEAD_BYTES = 4096
"""Enough of a file to see what it is: a block of the file system is read in any case."""
SEGMENT_IN_MEMORY_BYTES = 64 << 20
"""A larger segment is not held in memory: it goes through a spool, or into the store in pieces."""
ENTRY_IN_MEMORY_BYTES = 64 << 20
"""Of an entry, some four hundred thousand files of a backup."""
WAITING_WAL_BYTES = 16 << 20
"""What may wait in memory while a segment is completed: a segment of the common size."""
PREFETCHED_BYTES = 64 << 20
"""Segments that wait for a server beside it: four of the common size."""
PREFETCH_SPARE_FACTOR = 4
"""Nothing is fetched ahead unless so many times the room that it takes is free: the server comes first."""
PACK_SIZE = 256 << 20
"""A pack that has so many bytes gets no more frames."""
ONE_FRAME_RUN_BYTES = 8 << 20
"""What is not more is encoded before another thread would have begun."""
REWRITTEN_READ_BYTES = 8 << 20
"""Frames that move to another pack are asked for together as long as they have no more."""
COPIED_PACK_READ_BYTES = 4 << 20
"""What one request for a pack asks for, unless a frame ends behind it."""
FRAME_REQUEST_BYTES = 4 << 20
"""The same of frames that are read ahead."""
FRAMES_WAITING = 8
"""So many frames of a stream are being encoded at most; more would only be held."""
PIECES_IN_PASSAGE = 4
"""From whoever makes what is stored to whoever stores it, which goes by leaps."""
FRAMES_KEPT = 32
"""Blocks and small files share a frame: so many that were read last stay, or four for each job."""
FRAMES_AHEAD = 64
"""So many are read before they are asked for, over all files."""
FRAMES_AHEAD_OF_ONE = 16
"""The same for one file, where each request takes its time."""
FRAMES_AHEAD_IN_FILES = 8
"""The same where objects are files."""
FRAMES_EXPECTED = 64
"""Named to whoever reads ahead: more than are ever read."""
FORGOTTEN_AFTER_FRAMES = 256
"""So many frames later nobody is going to ask for one that was read ahead: its file was given up."""
FRAMES_MOVED = 1 << 16
"""So many frames a new pack has at most, that its table is read as a whole."""
CIPHERS_KEPT = 256
"""Of objects that were read last: a few hundred bytes each."""
HELD_SECRETS = 1 << 16
"""Of objects that a receiver wrote: a hundred bytes each."""
HELD_SECRET_SEGMENTS = 8
"""Kept whatever is summarised: those that a receiver compares when it begins."""
OBJECT_FIRST_BYTES = 64 << 10
"""What opening an object asks for: often that is all of it, or all that is read."""
OBJECT_AHEAD_BYTES = 1 << 20
"""What one request asks for at least: over a network, its answer takes as long for a byte."""
OBJECT_WHOLE_BYTES = 16 << 20
"""What one asks for of an object that is read whole: most segments and entries are not larger."""
GAP_READ_BYTES = 1 << 20
"""What lies between two ranges of an object, if it is not more, is read as well: that takes less than to ask twice."""
PUT_AT_ONCE_BYTES = 8 << 20
"""Of pieces: what is not more goes in one request, which alone can be refused because something is there already."""
UPLOADED_PART_BYTES, UPLOADED_PARTS_AT_ONCE = 5 << 20, 2
"""Of larger objects. S3 takes no smaller parts, and each is kept until it has arrived: of each object that is under
way, twenty megabytes are in memory."""
SQL_READ_BYTES = 256 << 10
"""Of a file over SQL: the server builds an answer as a whole."""
SQL_QUERY_BYTES, SQL_QUERY_READS = 128 << 20, 2000
"""Blocks that lie apart are as many reads; the two together bound how long one query, and its snapshot, lasts."""
SQL_WHOLE_FILE_BYTES = 8 << 20
"""A file up to here that is wanted to its end is read by one call of the server, which opens it once."""
SQL_STATUSES_AT_ONCE = 1000
"""Files whose sizes and times one query asks for: the answer has some 100 kB."""
SQL_RELATIONS_AT_ONCE = 10_000
"""Relation numbers whose names one query asks for."""
MAP_LINES_AT_ONCE = 1 << 14
"""Lines of a block map that are printed by one write."""
UNTAKEN_BLOCKS = 1 << 15
"""Moving blocks into a map costs by the take as well as by the block; that many fit what the scanner has anyway."""
UNMEASURED_REFERENCES = 1 << 20
"""After so many references a map is measured, which takes a while."""
CHURN_RELATIONS = 10_000
"""Relations that are counted apart: memory does not grow with their number, and is about 15 MB for each 10 000."""
SUSPECTED_BLOCKS = 1 << 20
"""As soon as so many blocks have changed meanwhile, an audit judges them; from then on the block map goes to there."""
NOTED_RELATIONS = 500_000
"""Made in replayed WAL. Behind so many no more are collected: of those the server says that the file exists, and its
second start removes it."""
FREED_PIECE_BYTES, FREED_BYTES = 2 << 20, 32 << 20
"""What malloc keeps of freed memory: pieces of the size that is read or received, and so much of them in all."""
COLLECTED_OBJECTS, COLLECTED_OBJECTS_AT_START = 20_000, 150_000
"""So many new objects are looked through for cycles at a time: some megabytes. Importing makes a hundred thousand: with
Python's own 700, looking for cycles among them took a fifth of the start."""

# ---- parallelism, and how much work is under way
DEFAULT_JOBS = 2
"""Of a backup. One job alone leaves the disk idle while it computes and writes; a third one gains little where reading
is local."""
MOST_DEFAULT_JOBS = 4
"""Of a restore, or the processors where those are fewer: more wait for one disk."""
RESULTS_WAITING = 100
"""How many results may wait for an earlier one; what takes long holds up that many others at most."""
FILES_UNDER_WAY = 16
"""Files for each thread that writes: taken, being written, or waiting for an earlier one."""
OPEN_FILES, OTHER_OPEN_FILES = 128, 40
"""By one thread: more than a buffer has blocks are never needed at once. The others are the process's own."""
SYNC_THREADS = 16
"""They wait for the disk, not for a processor; a file system makes several small files durable in one go."""
SYNC_FILES = 8
"""What one of them makes durable in one call, between which they wait for each other."""
WRITE_THREADS = 16
"""More wait for the disk than it can serve at once; what is not served waits, with a buffer each."""
FRAME_REQUEST_THREADS = 8
"""Where each request takes its time, so many are under way at once, whatever there is to decode them with."""
PACKS_PENDING = 2
"""So many full packs may still be on their way into the store."""
REQUESTS_AT_ONCE = 64
"""Of small objects: they only wait for the store."""
FEWEST_FOR_THREADS = 4
"""For less no threads are begun."""
LISTED_AT_ONCE = 1000
"""Names in an answer, or in a request to delete them: S3 has no more."""
ARCHIVE_THREADS = 2
"""Compressing takes longer than all else, and the others of the machine have processors to use as well."""
ARCHIVED_AHEAD = 64
"""Segments that may be archived before the server asks: so many marks are waited for."""
PREFETCHED_AT_ONCE, PREFETCHED_AT_FIRST = 4, 2
"""Segments that are fetched at the same time over a network, and how many at first."""
PIECES_FOR_EACH_WORKER = 4
"""So many pieces for each worker are under way, or done and waiting for an earlier one."""
OPEN_REPOSITORIES = 2
"""So many repositories a worker keeps open: it may serve some commands at once."""
SEGMENTS_IN_A_RUN = 16
"""Segments that one worker takes, one after the other; it reads the one before them, too."""
BACKUP_PIECE_FILES = 256
"""A piece of a backup that has so many files gets no more."""
COPIED_PART_BYTES, COPIED_PART_FILES = 1 << 30, 50_000
"""A part of a copy that has so many bytes, or files, gets no more: so much is copied again at most."""
PIECE_PACKS, PIECE_READ_PACKS = 64, 1
"""Packs of which a look is taken at both ends, or all is read."""
PIECES_BEHIND_BORDER = 4
"""Of the segment behind a border: a record that goes on there mostly ends soon."""
MOST_PROCESSES = 256
"""Of --executor process:N, each with a Python of its own: more are a slip."""
COMPRESSOR_NICENESS = 10
"""Compressing stored segments waits for all else that the machine does."""
MAX_CONNECTIONS = 16
"""To --metrics: a thread each."""
RELAYED_REQUESTS = 8
"""A server makes one at a time; those of killed servers stay."""
SPARE_SEGMENTS = 3
"""In a spool: the one that was stored last, the one that is received, and one that is full before anybody looks."""
STORED_BEFORE = 3
"""So much of what waits is stored before a segment that does not: it gets less that way, and nobody waits long."""

# ---- work that is limited
MAX_REWRITTEN_BYTES = 1 << 30
"""So many bytes of worn packs are stored anew at most in a run of expire."""
WORN_SHARE = 4
"""A pack is worn of which less than one part in so many is needed."""
DENSE_FACTOR = 4
"""Where frames with changed blocks are larger than these by more, a merge that reads and stores them anew costs too
much."""
FRAME_PIECES = 24
"""Of a frame's size, that lie in different places: more would make entries long, and restores slow."""
RECOVERABLE_TIME_SEGMENTS = 2
"""So many are read at most for the time that can be restored: who asks waits for it."""
REPORTED_SEGMENTS = 16
"""Segments that are read for one report: each may have to be fetched, decrypted and decompressed."""
LISTED_EVERY = 8
"""The receiver says how far it is; only now and then it is looked whether it has got further."""
MOST_LOOKS = 10
"""So often a segment is looked for that is there under another name each time: a receiver stores it as it grows."""
AUDIT_MAPS = 5
"""How often the map is extended for blocks that change each time they are looked at."""
COPY_ATTEMPTS, COPY_REREADS = 3, 3
"""Of a file whose pages fail their checksums, and of these pages: the server may be writing them."""
REPLACED_ATTEMPTS = 5
"""How often a large file is read that is replaced while it is."""
AUDIT_REREADS = 4
"""The same as COPY_REREADS of blocks that seem to have been missed; one more, for much follows from them."""
CONTROL_FILE_ATTEMPTS = 50
"""The server may be writing pg_control; that takes far less than the time of all attempts."""
PARTS_ATTEMPTS, PARTS_PAUSE_S = 30, 0.1
"""The server removes directories before it commits that they are dropped, and makes them before it shows them."""
DIRECTORY_ATTEMPTS, DIRECTORY_PAUSE_S = 30, 0.05
"""A checkpoint, or a standby's replay, may write pg_control between the two readings; one soon comes that is quiet."""

# ---- time: how often something is looked for, in seconds
TICK_S = 1.0
"""How often a receiver shows that it is alive."""
STATUS_INTERVAL_S = 10.0
"""As pg_receivewal's: how often the server is told what is durable, if nothing happens."""
SILENT_INTERVALS = 6
"""A server that lives answers every second status; this many intervals of silence mean a dead connection."""
SYNC_PAUSE_S, MIN_SYNC_INTERVAL_S, SYNC_INTERVAL_S = 0.003, 0.1, 1.0
"""WAL that was received is synced when the server pauses, if the last sync is not too recent: backups wait for it.
Without a pause it is synced after the last of these."""
SYNCHRONOUS_INTERVAL_S = 0.05
"""A synchronous standby is waited for, however busy the server is otherwise."""
NEWEST_BACKUP_INTERVAL_S, UNKNOWN_BACKUP_INTERVAL_S = 60.0, 1.0
"""When the newest backup began, for a metric: in an object store each look is a request. The second one while there is
no repository, which the receiver may be about to make."""
STATE_INTERVAL_S = 5.0
"""How old the state that the receiver leaves for others may get."""
STATE_LEAST_S, STATE_NEAR_LEAST_S, STATE_CHANGED_S, STATE_MOST_S = 0.2, 0.02, 5.0, 60.0
"""The same of what is in a store: how old it may get when more is stored, where that is no request, when other things
have changed, and when only time has passed."""
STATE_TOLD_S, STATE_LOOK_S = 0.5, 0.05
"""How long after something was stored the receiver may have that to tell, and how often it is looked for."""
PARTIAL_ASK_S, PARTIAL_NEAR_ASK_S, PARTIAL_NEAR_SHARE = 2.0, 0.2, 20
"""How often it is asked whether somebody waits; where that is no request, as often as storing what is there takes no
more than a twentieth of the time."""
SPOOL_LOOK_S, SPOOL_NEAR_LOOK_S = 0.25, 0.05
"""How often a spool is looked through for what can be stored; the shorter where storing is no request."""
DELIVERED_LOOK_S = 0.05
"""How soon it is noticed that more has been delivered."""
BACKUP_STATUS_INTERVAL_S = 0.5
"""A backup's own receiver lives no longer than the backup, which waits for the open segment."""
WATCH_INTERVAL_S, UNSTREAMED_INTERVAL_S = 15.0, 1.0
"""How often a server is asked about its slot. While there is no stream: the slot may be made any moment, the server
come back, and what the slot retains grows."""
RECEIVED_POLL_S, LONGEST_SEALED_POLL_S = 0.001, 0.05
"""How often a backup looks for WAL; the longer where what is looked at has to be decrypted."""
REMOTE_POLL_S, LONGEST_REMOTE_POLL_S = 0.3, 3.2
"""Where the repository is reached over a network, each look is a request: at the next one twice as much time has passed
since the first wait began, or the longest."""
PROOF_AFTER_S, PROOF_INTERVAL_S, REMOTE_PROOF_AFTER_S, REMOTE_PROOF_INTERVAL_S = 1.0, 4.0, 5.0, 20.0
"""When, and how often, what another process receives is held against the server while WAL is waited for."""
FIRST_LOOK_S, LONGEST_LOOK_S = 5.0, 60.0
"""When, and how often, it is looked during a backup whether the archive has its start: each look is a request."""
ARCHIVE_POLL_S = 0.002
"""How often archive-wal looks for the mark that another process makes: the server waits for it."""
PREFETCH_POLL_S, PREFETCH_REMOTE_RETRY_S = 0.01, 1.0
"""How often it is looked what the server has taken; and for a segment that was not there, where each look is a
request."""
RELAY_POLL_S = 0.01
"""How often a trial restore looks for what its server asks for."""
STARTED_LOOK_S = 0.1
"""How often the server of a trial restore is asked whether it has replayed all."""
LOCK_LOOK_S = 0.1
"""Whoever looks whether a lock is held has it for an instant."""
SQL_LOOK_S = 0.1
"""How often a wait for a server looks at the time."""
FUTURE_LOOK_S = 0.5
"""How often a wait for a thread is left, to handle signals."""
REREAD_PAUSE_S = 0.02
"""Before a page is read again that fails its checksum: a server writes one in less."""
PROGRESS_LINE_S = 30.0
"""Between lines of progress, where stderr is no terminal."""
REPORT_FRESH_S = 60.0
"""So long a page is shown again: a repository is read no more often than this, whoever asks."""

# ---- time: how long is waited before it is tried again, or given up
RECONNECT_MIN_S, RECONNECT_MAX_S = 0.1, 5.0
"""Between a receiver's attempts: a server that restarts is soon back, one that is down is not asked all the time."""
UPLOAD_RETRY_MIN_S, UPLOAD_RETRY_MAX_S = 0.5, 10.0
"""The same of a store that takes nothing."""
UPLOAD_SLOW_S = 10.0
"""The client asks again by itself for a minute; a server that shuts down is not to wait that long."""
UPLOADER_END_S = 5.0
"""How long the end of an uploader is waited for; its thread ends with the process."""
PUT_TRIES, PUT_TRYING_S, PUT_LONGEST_WAIT_S = 5, 30.0, 5.0
"""Of what the library of a store does not try again by itself, for it might do harm."""
REQUEST_RETRIES, PROBE_RETRIES, REQUEST_FIRST_WAIT_S, REQUEST_RETRYING_S = 10, 4, 0.3, 60
"""Some ten seconds, for waits grow by half of the first one: nothing interrupts them, and people wait for the error.
Some three seconds for who tries whether a store is there."""
REQUEST_TIMEOUT_S = 120
"""Of one request, whose body has mostly some megabytes; the library's own, half a minute, is short for a slow line."""
LEASE_VALID_S, LEASE_GRACE_S, LEASE_RENEWED_S = 45.0, 20.0, 15.0
"""So long after it was renewed a holder takes its lease for expired; others so much later; how often it is renewed."""
COMPRESSOR_RETRY_S, COMPRESSOR_DRAIN_S = 60.0, 5.0
"""When a segment that could not be compressed is tried again, and how long a stop waits for those that are left."""
DELIVERY_S = 10.0
"""How long a stop waits for the rest of what was received to be delivered."""
FULL_SPOOL_S = 10.0
"""How long the connection is kept while the spool is full: a server that shuts down waits until all is received."""
STALLED_S = 60.0
"""How long WAL may fail to arrive before waiting for it is given up."""
SILENCE_S = 60.0
"""After how long without a word from the server it is asked whether it lives, and the user told; again and again."""
PROBE_S = 10
"""How long it may take to let in a new connection then."""
COMMAND_TIMEOUT_S = 60.0
"""Replication commands answer at once; a server that takes longer than this is as good as gone."""
STOP_TIMEOUT_S = 2.0
"""The same for who wants an end."""
CANCEL_TIMEOUT_S = 1.0
"""How long a server may take to hear that what it does is not wanted any more."""
COMPARED_WAL_S = 10.0
"""How long a server may take to send WAL that is compared with what a receiver brought."""
DROP_PAUSE_S, DROP_PATIENCE_S = 0.05, 10.0
"""Until DROP TABLESPACE commits, a row is there and its link no longer."""
SLOT_NEAR_LIMIT = 0.75
"""From this part of the limit on what a slot retains is looked at as if it were beyond."""
SLOT_GRACE_S = 15.0
"""How long a slot must have been beyond the limit, and have retained no less, before it is dropped."""
SLOT_RETRY_S, SLOT_RELEASE_S = 2.0, 10.0
"""Between attempts to drop it; how long the server may take to notice that the slot's receiver is gone."""
MARK_UNSEEN_S = 60.0
"""How long a mark counts where it cannot be seen at once that the object is there."""
MARK_WAIT_S = 60.0
"""How long to wait for another process to archive what is asked for, before doing it twice."""
ARCHIVE_IDLE_S = 10.0
"""How long nobody may ask for what was archived ahead before that ends."""
PREFETCH_IDLE_S = 10.0
"""The same of what was fetched ahead."""
SETTLED_S = 10
"""How long ago a file must have changed last, for its times, in whole seconds, to show that it no longer does."""
STARTING_S, CLOCK_DIFFERENCE_S = 60, 2
"""How long a server may take from its start to the time that it says it was started at (memory is set up in between),
and how much earlier that may seem."""
CROWDED_IDS_S = 60
"""So far ahead of the clock may be ids of backups that came one right after the other; others tell of a wrong clock."""
RECEIVER_SILENT_S = 300.0
"""A receiver that runs says so more often, and is behind its server for less, unless something is wrong."""
REPORTED_S = 30 * 86400.0
"""How far back the pictures of a receiver's own report go: what they cost does not grow with a repository's age."""
UNWINDING_S = 5
"""After how long a command that has not ended is interrupted again, and then ended as it is."""
MAX_CONNECTION_S, REFUSAL_PAUSE_S = 10.0, 0.1
"""How long a connection to --metrics may last. After the system has refused one, it would refuse the next at once."""
REPORT_PATIENCE_S, REPORT_AGAIN_S = 6.0, 3
"""How long who asks for a page waits until it is made, less than a connection may last; and when to ask again."""
SCHEDULER_TIMEOUT_S, WORKER_TIMEOUT_S = 10, 30
"""For a Dask scheduler to answer. So long somebody may take to start workers beside the scheduler."""
REPLAY_TIMEOUT_S = 24 * 3600
"""Of a trial restore: replay of much WAL takes hours, and whoever has lost patience interrupts it."""
