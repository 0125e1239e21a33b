/* Plays inputs where there is no fuzzer: the files of a folder, then so many seeded random ones.
 * Usage: replay FOLDER RANDOM_INPUTS [SEED] */
#include <dirent.h>
#include <string.h>

#include "player.h"

enum { MAX_BYTES = 4096 };

static void play_file(const char *folder, const char *name) {
  static uint8_t bytes[1 << 16];
  char path[4096];
  snprintf(path, sizeof path, "%s/%s", folder, name);
  FILE *file = fopen(path, "rb");
  if (!file) {
    perror(path);
    exit(1);
  }
  const size_t size = fread(bytes, 1, sizeof bytes, file);
  fclose(file);
  LLVMFuzzerTestOneInput(bytes, size);
}

static int play_folder(const char *folder) {
  DIR *all = opendir(folder);
  if (!all) {
    perror(folder);
    exit(1);
  }
  int count = 0;
  for (const struct dirent *entry; (entry = readdir(all));)
    if (entry->d_name[0] != '.') {
      play_file(folder, entry->d_name);
      count++;
    }
  closedir(all);
  return count;
}

static void play_random(int count, uint64_t seed) {
  uint8_t bytes[MAX_BYTES];
  for (int i = 0; i < count; i++) {
    uint64_t state = seed + (uint64_t)i;
    const int32_t size = 1 + random_below(&state, MAX_BYTES);
    for (int32_t at = 0; at < size; at++) bytes[at] = (uint8_t)random_next(&state);
    LLVMFuzzerTestOneInput(bytes, (size_t)size);
  }
}

int main(int count, char **arguments) {
  if (count < 3) return fprintf(stderr, "usage: replay FOLDER RANDOM_INPUTS [SEED]\n"), 2;
  const int files = play_folder(arguments[1]), random = atoi(arguments[2]);
  play_random(random, count > 3 ? strtoull(arguments[3], NULL, 10) : 20261124);
  int64_t calls = 0;
  for (int i = 0; i < PLAYS; i++)
    for (int worked = 0; worked < 2; worked++) {
      calls += fuzz_answers[i][worked];
      CHECK(random < 1000 || fuzz_answers[i][worked] > random / 20); /* calls of both kinds */
    }
  printf("%d files and %d random inputs: %lld calls\n", files, random, (long long)calls);
  return 0;
}
