/* OmniServe's native library: KV arenas, attention, host workers and the exchange.
 *
 * Nouns: an *arena* holds KV blocks of one tier; a *sequence* is one
 * request's block table in an arena; a *slot* is the preallocated place of an offloaded row in
 * flight; *workers* are pinned threads that run attention *items*; the *exchange* ties slots, the
 * submit ring, the workers and the stack of completed slots together.
 *
 * Threads: every function of one arena or exchange is called by one thread, the engine's; the
 * workers are the only other threads. Ownership passes with a submission and comes back with its
 * completion. Functions that return int give OS_OK (0) or a positive answer, or a negative
 * os_status; os_last_error() then names the argument, its value and what would be right.
 *
 * Rows are [heads][head_size], contiguous within a row; strides count elements between rows.
 */
#ifndef OMNISERVE_H
#define OMNISERVE_H

#include <stddef.h>
#include <stdint.h>

/* OS_I8: of stored KV only. A token's K (or V) of one kv head is head_size signed bytes and one
 * bfloat16 scale. Rows of that dtype, where import and export take them, hold the bytes, then the
 * scale: head_size + 2 bytes per head. */
typedef enum { OS_F32 = 0, OS_BF16 = 1, OS_F16 = 2, OS_I8 = 3 } os_dtype;

typedef enum {
  OS_OK = 0,
  OS_EINVAL = -1, /* an argument is out of range */
  OS_ENOMEM = -2, /* memory could not be had */
  OS_EFULL = -3,  /* no free slot, sequence or ring entry */
  OS_EBUSY = -4,  /* an item in flight still uses it */
  OS_ESTATE = -5  /* the object is not in a state that allows the call */
} os_status;

enum { OS_BLOCK_TOKENS = 16, OS_MAX_Q_LEN = 8, OS_MAX_GROUP = 16, OS_LAYOUT_VERSION = 3 };
enum { OS_MAX_NODES = 1024 };

/* The calling thread's last error as one line; never NULL. */
const char *os_last_error(void);
/* Its os_status: for the functions that return NULL. */
int os_last_status(void);

/* ISA path in use: "avx512_bf16", "avx512_vnni", "avx512", "avx2" or "portable". The best this machine has, or
 * the one named by OMNISERVE_ISA at the first call; NULL (and os_last_error) when that names an
 * unknown path or one this machine lacks. */
const char *os_isa_name(void);

/* ---- workers ------------------------------------------------------------------------------ */

typedef struct os_workers os_workers;

typedef struct {
  int32_t count;          /* threads, 0..1024; 0 = the caller does all the work itself */
  const int32_t *cores;   /* one core per thread, or NULL: not pinned */
  int32_t spin_ns;        /* how long an idle worker spins before it sleeps */
  int32_t batch_priority; /* 1: SCHED_BATCH, nice 5, long slices, for cores shared with others */
  int32_t node_count;     /* 0..OS_MAX_NODES; 0: not known */
  const int32_t *nodes;   /* NUMA nodes of the cores, which what the threads read should lie on */
} os_workers_config;

typedef struct {
  int64_t busy_ns;  /* summed over threads */
  int64_t items;    /* (row, kv head, kv range) items finished */
  int64_t kv_bytes; /* KV bytes read, each byte counted once per item */
  int64_t sleeps;
  int64_t taken_ns; /* when the last item was taken, by CLOCK_MONOTONIC; 0: none yet */
  int32_t running;  /* threads alive */
  int32_t spin_ns;  /* as asked for, or 0 where workers and creator have one core between them */
} os_workers_stats;

os_workers *os_workers_create(const os_workers_config *config);
/* Stops, joins; NULL is fine. In a forked child, which has none of the threads, only frees. */
void os_workers_destroy(os_workers *workers);
/* Gate for tests and drains: after pause returns no worker is inside an item, and none takes one
 * until resume. Submissions are still accepted. OS_EBUSY when an item takes longer than 60 s: the gate
 * is open then. */
int os_workers_pause(os_workers *workers);
int os_workers_resume(os_workers *workers);
int os_workers_get_stats(const os_workers *workers, os_workers_stats *out);

/* ---- arena -------------------------------------------------------------------------------- */

typedef struct os_arena os_arena;

typedef struct {
  int32_t layers, kv_heads, head_size; /* head_size: 64, 80, 96, 128 or 256, or any multiple of 8
                                          from 16 to 256 through a generic path */
  int32_t blocks;                      /* of OS_BLOCK_TOKENS tokens, over all layers */
  int32_t max_sequences, max_blocks_per_sequence;
  int32_t dtype;                       /* os_dtype of the stored KV */
} os_arena_config;

/* How bytes lie inside one (block, layer, kv head) tile; equal descriptors may exchange raw tiles. */
typedef struct {
  int32_t version, dtype, block_tokens, kv_heads, head_size;
  int64_t tile_bytes; /* K and V of one (block, layer, kv head), and for int8 their scales */
  char isa[16], k_order[32], v_order[32];
} os_layout;

int64_t os_arena_bytes(const os_arena_config *config); /* what create would map, or negative */
os_arena *os_arena_create(const os_arena_config *config);
void os_arena_destroy(os_arena *arena);
/* Touches every page; by the pinned workers where given, else by the caller. What had not been touched
 * comes from the workers' nodes: from the one, or from each of several in turn. Where they are not known or
 * the system refuses (seccomp in a container), from the node of the thread that touches it. */
int os_arena_prefault(os_arena *arena, os_workers *workers);

typedef enum { OS_FIRST_TOUCH = 0, OS_PREFERRED = 1, OS_INTERLEAVED = 2 } os_policy;

/* Where the tiles are, for a reader of /proc/self/smaps, and how prefault placed them. */
typedef struct {
  const void *tiles;
  int64_t bytes;
  int32_t policy;  /* os_policy */
  int32_t refused; /* errno with which the system refused another policy, or 0 */
} os_arena_memory;

int os_arena_get_memory(const os_arena *arena, os_arena_memory *out);
int os_arena_layout(const os_arena *arena, os_layout *out);

/* A sequence: an ordered block table and a valid length. Opened with one reference. */
int32_t os_seq_open(os_arena *arena); /* id >= 0, or OS_EFULL */
int os_seq_retain(os_arena *arena, int32_t seq);
int os_seq_release(os_arena *arena, int32_t seq); /* references left; at 0 the id may be reused */
int os_seq_set_blocks(os_arena *arena, int32_t seq, int32_t first, int32_t count,
                      const int32_t *blocks);
int64_t os_seq_length(const os_arena *arena, int32_t seq);
/* Forget the tokens from `tokens` on (or declare that many valid when prefix blocks were attached:
 * any value up to the table's capacity). OS_EBUSY while an item in flight uses the sequence. */
int os_seq_truncate(os_arena *arena, int32_t seq, int64_t tokens);

/* Write `count` tokens at `start` of one layer from rows [count][kv_heads][head_size] of
 * `source_dtype` (converted, round to nearest even). Raises the valid length to start + count. */
int os_arena_append(os_arena *arena, int32_t seq, int32_t layer, int64_t start, int32_t count,
                    const void *k, const void *v, int64_t stride, int32_t source_dtype);
/* The same in the arena's own dtype, densely packed [count][kv_heads][head_size]: import writes,
 * export reads; export after import gives the same bytes. */
int os_arena_import(os_arena *arena, int32_t seq, int32_t layer, int64_t start, int32_t count,
                    const void *k, const void *v);
int os_arena_export(const os_arena *arena, int32_t seq, int32_t layer, int64_t start,
                    int32_t count, void *k, void *v);
/* Import of whole blocks that a device has packed: tiles [count / OS_BLOCK_TOKENS][kv_heads], each as
 * os_arena_layout tells. start and count are multiples of OS_BLOCK_TOKENS. */
int os_arena_import_tiles(os_arena *arena, int32_t seq, int32_t layer, int64_t start, int32_t count,
                          const void *tiles);
/* The inverse of append: rows of `dtype`, converted from what is stored. */
int os_arena_read(const os_arena *arena, int32_t seq, int32_t layer, int64_t start, int32_t count,
                  void *k, void *v, int64_t stride, int32_t dtype);
/* Copy tokens [start, start+count) of every layer between two arenas of the same shape (layers, kv
 * heads, head size): whole tiles by memcpy where the dtypes are equal and the range is
 * block-aligned, else token by token, converted where the dtypes differ. */
int os_arena_copy(os_arena *to, int32_t to_seq, const os_arena *from, int32_t from_seq,
                  int64_t start, int64_t count);

/* ---- attention of device rows (CPU device) ------------------------------------------------- */

/* `q_len` consecutive tokens of one sequence whose first token has position `start`. */
typedef struct {
  int32_t seq;
  int32_t q_len; /* 1 = decode; more = a prefill chunk or drafts; any length */
  int64_t start;
} os_segment;

typedef struct {
  os_arena *arena;
  os_workers *workers; /* helpers of the calling thread, or NULL */
  int32_t layer, q_heads, dtype /* of q, k, v, o */;
  float scale;
  const void *q, *k, *v; /* rows of all segments, in order */
  int64_t q_stride, k_stride, v_stride;
  void *o; /* [rows][q_heads][head_size] */
  int64_t o_stride;
  float *lse; /* [rows][q_heads] natural log-sum-exp of the scaled scores, or NULL */
  int32_t segments_count;
  const os_segment *segments;
} os_attend_args;

/* Appends k and v of every segment, then attends causally. k and v NULL: KV is already there. */
int os_attend(const os_attend_args *args);

/* ---- exchange ------------------------------------------------------------------------------ */

typedef struct os_exchange os_exchange;

typedef struct {
  os_arena *arena;     /* host KV */
  os_workers *workers; /* host attention workers, count >= 1 */
  int32_t slots, q_heads, hidden_size;
  int32_t dtype;         /* of activations: q, k, v, o, residual */
  int32_t host_residual; /* 1: slots hold the residual here; 0: the device keeps it by slot index */
  int32_t split_tokens;  /* KV is split into ranges of at least this many tokens, when items are
                            fewer than twice the workers or a row is longer than a worker's share;
                            0 = default (256) */
  float scale;
  int32_t later_joins;   /* 1: a hop is not picked in the iteration that submitted it, unless that
                            waits; for experiments */
} os_exchange_config;

typedef struct {
  int64_t submitted, completed, picked; /* hops (one slot, one layer) */
  int64_t picked_rows;
  int64_t same_iteration; /* hops picked in the iteration that submitted them */
  int64_t stale;          /* completions dropped because the slot's epoch had moved on */
  int32_t in_flight;      /* submitted and not yet completed */
  int32_t ready;          /* completed and not yet picked */
  int32_t open;           /* slots opened and not yet freed */
} os_exchange_stats;

os_exchange *os_exchange_create(const os_exchange_config *config);
void os_exchange_destroy(os_exchange *exchange); /* waits for items in flight */
int64_t os_exchange_bytes(const os_exchange_config *config);

/* A slot for a row of `seq`; a new epoch begins and the sequence is retained. */
int32_t os_slot_open(os_exchange *exchange, int32_t seq); /* slot >= 0, or OS_EFULL */
/* At a token boundary: the row's next hops carry q_len tokens, the first at `position`. */
int os_slot_begin(os_exchange *exchange, int32_t slot, int64_t position, int32_t q_len);
/* Cancel or finish. 0: freed at once. 1: an item is in flight; the epoch moves on, its completion
 * will be dropped as stale, and the slot then appears in os_exchange_reap. */
int os_slot_close(os_exchange *exchange, int32_t slot);
/* Slots freed since the last call (their sequences released), at most `max`; count. */
int os_exchange_reap(os_exchange *exchange, int32_t max, int32_t *slots);

/* Park and submit: rows of the slots in order, q_len rows each, leave the batch at `layer`. Residual
 * may be NULL iff host_residual is 0. The worker that owns a kv head appends its k and v: of the slots of one
 * sequence at most one may be in flight (not checked), else one's KV is read while the other's is written. */
int os_exchange_submit(os_exchange *exchange, int32_t layer, int64_t iteration, int32_t count,
                       const int32_t *slots, const void *q, int64_t q_stride, const void *k,
                       int64_t k_stride, const void *v, int64_t v_stride, const void *residual,
                       int64_t residual_stride);

/* Take the rows whose attention of `layer` has come back, FIFO by submission among the ready, whole
 * slots only, at most max_rows rows. With wait_ns > 0 waits until every slot in flight at this
 * layer is ready, for at most that long. Gathers, per row: o [q_heads*head_size], residual
 * [hidden_size] (NULL iff host_residual is 0), position. Returns the number of slots taken. */
int os_exchange_pick(os_exchange *exchange, int32_t layer, int64_t iteration, int32_t max_rows,
                     int64_t wait_ns, int32_t *slots, void *o, int64_t o_stride, void *residual,
                     int64_t residual_stride, int64_t *positions, int32_t *rows_out);

/* How many hops wait at `layer`: in flight and ready together. */
int os_exchange_waiting(const os_exchange *exchange, int32_t layer);
int os_exchange_get_stats(os_exchange *exchange, os_exchange_stats *out);
/* Copy the log-sum-exp of the slot's finished hop, [q_len][q_heads], into room for so many floats;
 * OS_ESTATE before it has come back and after os_slot_begin. */
int os_slot_lse(os_exchange *exchange, int32_t slot, int64_t floats, float *lse);

/* ---- one call per layer (CPU device) ------------------------------------------------------- */

typedef struct {
  os_attend_args device; /* device rows: segments_count may be 0; q, k, v, o are the row buffers of
                            the whole batch, device rows first, tail rows after them */
  int32_t device_rows;
  void *residual; /* [capacity][hidden_size]: tail rows are parked from it, joined rows land in it */
  int64_t residual_stride;
  int64_t *positions;    /* [capacity]: joined rows' positions land here */
  int32_t *tail_slots;   /* [slots] in: slots whose rows leave; out: slots that joined */
  int32_t tail_count;    /* in, out */
  int32_t tail_rows;     /* out: rows that joined */
  int32_t max_join_rows; /* join lanes of this layer; row buffers hold device_rows + this */
  int64_t wait_ns, iteration;
} os_layer_args;

/* Parks and submits the tail (rows device_rows ...), attends the device rows, picks and gathers the
 * joins behind them. `exchange` may be NULL when there is no tail and max_join_rows is 0. */
int os_layer(os_exchange *exchange, os_layer_args *args);

/* ---- dense modules (CPU device, bfloat16) --------------------------------------------------- */

/* 1 where the ISA path in use has AVX2 or AVX-512; else 0, and the calls below fail. */
int os_dense_supported(void);

typedef struct {
  const void *values; /* [outputs][inputs] bfloat16; packed into huge pages, not kept */
  const void *bias;   /* [outputs] bfloat16, or NULL */
} os_weight;

typedef struct os_linear os_linear;

os_linear *os_linear_create(const os_weight *weight, int32_t outputs, int32_t inputs);
void os_linear_destroy(os_linear *linear);
/* y = x W^T + bias. Rows are bfloat16; a row's result does not depend on the rows beside it.
 * `workers`: helpers of the calling thread, or NULL; the same for os_dense_*. */
int os_linear_run(const os_linear *linear, os_workers *workers, int32_t rows, const void *x,
                  int64_t x_stride, void *y, int64_t y_stride);

/* One layer. Sizes are even; o has q_heads * head_size inputs. */
typedef struct {
  int32_t hidden, intermediate, q_heads, kv_heads, head_size;
  float rms_eps;
  os_weight qkv, o, gate_up, down;
  const void *input_norm, *mlp_norm; /* [hidden] */
  const void *qk_norm;               /* [q_heads + kv_heads][head_size], or NULL */
} os_dense_config;

typedef struct os_dense os_dense;

int64_t os_dense_scratch_bytes(const os_dense_config *config);
/* `scratch` outlives the layer, is 64-byte aligned, and may be shared by layers of one thread. */
os_dense *os_dense_create(const os_dense_config *config, void *scratch);
void os_dense_destroy(os_dense *dense);
/* Norm, QKV, rotary: x [rows][hidden] -> qkv [rows][(q_heads + 2 kv_heads) * head_size]. A row of
 * rope: head_size cosines, then head_size sines, those of the first half negated. */
int os_dense_before(const os_dense *dense, os_workers *workers, int32_t rows, const void *x,
                    int64_t x_stride, const void *rope, int64_t rope_stride, void *qkv,
                    int64_t qkv_stride);
/* Adds attention's output o and then the MLP to the residual x, in place. */
int os_dense_after(const os_dense *dense, os_workers *workers, int32_t rows, const void *o,
                   int64_t o_stride, void *x, int64_t x_stride);

#endif
