/* Decodes regions of the JPEGs named on the command line, into buffers of the exact size, for the sanitizers to watch.
   Arguments: FILE HEIGHT WIDTH, any number of times. Prints how many regions were decoded and how many refused. */

#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int convoy_jpeg_region(const unsigned char *data, size_t size, int scale, int channels, int left, int top, int width,
                       int height, unsigned char *pixels, char *message);

static unsigned draw(unsigned below) {
  static unsigned state = 1;
  state = state * 1664525u + 1013904223u;
  return (state >> 8) % below;
}

static unsigned char *read_file(const char *path, size_t *size) {
  FILE *file = fopen(path, "rb");
  if (!file) exit(2);
  fseek(file, 0, SEEK_END);
  *size = (size_t)ftell(file);
  rewind(file);
  unsigned char *data = malloc(*size);
  if (fread(data, 1, *size, file) != *size) exit(2);
  fclose(file);
  return data;
}

int main(int count, char **arguments) {
  int decoded = 0, refused = 0;
  for (int i = 1; i + 2 < count; i += 3) {
    size_t size;
    unsigned char *data = read_file(arguments[i], &size);
    for (int scale = 1; scale <= 8; scale *= 2) {
      unsigned rows = ((unsigned)atoi(arguments[i + 1]) + scale - 1) / scale;
      unsigned columns = ((unsigned)atoi(arguments[i + 2]) + scale - 1) / scale;
      for (int number = 0; number < 4; number++) {
        int channels = number % 2 ? 1 : 3;
        unsigned left = draw(columns), top = draw(rows);
        unsigned width = 1 + draw(columns - left), height = 1 + draw(rows - top);
        unsigned char *pixels = malloc((size_t)width * height * (size_t)channels);
        char *message = malloc(200);
        message[0] = 0;
        int result = convoy_jpeg_region(data, size, scale, channels, (int)left, (int)top, (int)width, (int)height,
                                        pixels, message);
        if (result ? !message[0] : message[0]) exit(3);
        unsigned sum = 0;
        for (size_t k = 0; !result && k < (size_t)width * height * (size_t)channels; k++) sum += pixels[k];
        if (sum == 0xFFFFFFFFu) exit(4); /* every pixel is read, so that the sum cannot be left out */
        if (result) refused++; else decoded++;
        free(message);
        free(pixels);
      }
    }
    free(data);
  }
  printf("%d decoded, %d refused\n", decoded, refused);
  return 0;
}
