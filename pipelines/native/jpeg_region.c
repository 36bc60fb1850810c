/* One rectangle of a JPEG, at full size or scaled by 1/2, 1/4 or 1/8 in its own transform, with libjpeg-turbo.

   Rows above the rectangle and columns beside it are entropy-decoded only; rows below it are not read. The pixels are
   those of a decode of the whole image: chroma is upsampled from its neighbours (and an unfinished progressive image
   smoothed), so a few columns more than the rectangle are decoded and thrown away.

   Thread-safe: all state is on the stack. Not for CMYK, nor for more than 8 bits a value. */

#include <setjmp.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include <jpeglib.h>
#include <jerror.h>

#if !defined(LIBJPEG_TURBO_VERSION_NUMBER) || LIBJPEG_TURBO_VERSION_NUMBER < 2000000
#error "libjpeg-turbo 2.0 or later is needed: jpeg_crop_scanline and jpeg_skip_scanlines"
#endif

#define MARKER_EOI 0xD9

enum { DECODED = 0, DAMAGED = 1, NO_MEMORY = 2 };

struct errors {
  struct jpeg_error_mgr manager;
  jmp_buf caller;
};

static void fail(j_common_ptr cinfo) {
  longjmp(((struct errors *)cinfo->err)->caller, 1);
}

/* After these warnings the pixels are still right, after others some may be guessed. decode_jpeg.py has the same two. */
static int is_harmless(const struct jpeg_error_mgr *error) {
  switch (error->msg_code) {
    case JWRN_NOT_SEQUENTIAL:
      return 1;
    case JWRN_EXTRANEOUS_DATA:
      return error->msg_parm.i[1] == MARKER_EOI;
    default:
      return 0;
  }
}

static void emit(j_common_ptr cinfo, int level) {
  if (level < 0 && !is_harmless(cinfo->err)) fail(cinfo);
}

static void begin(j_decompress_ptr cinfo, int scale, int channels) {
  jpeg_read_header(cinfo, TRUE);
  cinfo->scale_num = 1;
  cinfo->scale_denom = (unsigned)scale;
  cinfo->out_color_space = channels == 1 ? JCS_GRAYSCALE : JCS_RGB;
  cinfo->dct_method = JDCT_ISLOW;
  cinfo->do_fancy_upsampling = TRUE;
  jpeg_start_decompress(cinfo);
}

/* Keeps the columns left..left+width and a margin; returns the first column that is kept. */
static JDIMENSION crop_columns(j_decompress_ptr cinfo, JDIMENSION left, JDIMENSION width) {
  const JDIMENSION mcu = (JDIMENSION)(cinfo->max_h_samp_factor * cinfo->min_DCT_scaled_size);
  /* Upsampling looks one chroma sample aside; smoothing, of progressive images, two blocks. */
  const JDIMENSION margin = cinfo->progressive_mode ? 3 * mcu : 2 * (JDIMENSION)cinfo->max_h_samp_factor;
  const JDIMENSION all = cinfo->output_width;
  JDIMENSION first = left > margin ? left - margin : 0;
  JDIMENSION kept = (left + width + margin < all ? left + width + margin : all) - first;
  if (kept < all) jpeg_crop_scanline(cinfo, &first, &kept);
  return first;
}

/* One byte off alignment: into an aligned row libjpeg-turbo's vector code writes past the cache, and to read that back
   takes a tenth of the whole decode (500 x 375, version 2.1.5, Zen 4). */
static JSAMPROW row_buffer(j_decompress_ptr cinfo, int channels) {
  const size_t bytes = (size_t)cinfo->output_width * (size_t)channels;
  return (JSAMPROW)cinfo->mem->alloc_large((j_common_ptr)cinfo, JPOOL_IMAGE, bytes + 1) + 1;
}

/* Writes height x width x channels values to `pixels`, or libjpeg's message to `message` (JMSG_LENGTH_MAX = 200 chars).
   The rectangle is in pixels of the scaled image. Returns DECODED, DAMAGED or NO_MEMORY. */
int convoy_jpeg_region(const unsigned char *data, size_t size, int scale, int channels, int left, int top, int width,
                       int height, unsigned char *pixels, char *message) {
  struct jpeg_decompress_struct cinfo;
  struct errors errors;
  memset(&cinfo, 0, sizeof cinfo); /* so that it can be destroyed if it cannot be created */
  cinfo.err = jpeg_std_error(&errors.manager);
  errors.manager.error_exit = fail;
  errors.manager.emit_message = emit;
  if (setjmp(errors.caller)) {
    errors.manager.format_message((j_common_ptr)&cinfo, message);
    jpeg_destroy_decompress(&cinfo);
    return errors.manager.msg_code == JERR_OUT_OF_MEMORY ? NO_MEMORY : DAMAGED;
  }
  jpeg_create_decompress(&cinfo);
  jpeg_mem_src(&cinfo, data, (unsigned long)size);
  begin(&cinfo, scale, channels);
  if (left < 0 || top < 0 || width < 1 || height < 1 || (JDIMENSION)left + (JDIMENSION)width > cinfo.output_width ||
      (JDIMENSION)top + (JDIMENSION)height > cinfo.output_height || cinfo.output_components != channels) {
    snprintf(message, JMSG_LENGTH_MAX, "the rectangle lies outside of the %ux%u pixels", cinfo.output_width,
             cinfo.output_height);
    jpeg_destroy_decompress(&cinfo);
    return DAMAGED;
  }
  const JDIMENSION first = crop_columns(&cinfo, (JDIMENSION)left, (JDIMENSION)width);
  const size_t row_bytes = (size_t)width * (size_t)channels;
  const size_t skipped_bytes = ((size_t)left - first) * (size_t)channels;
  JSAMPROW row = row_buffer(&cinfo, channels);
  if (top > 0) jpeg_skip_scanlines(&cinfo, (JDIMENSION)top);
  for (int y = 0; y < height; y++) {
    jpeg_read_scanlines(&cinfo, &row, 1);
    memcpy(pixels + (size_t)y * row_bytes, row + skipped_bytes, row_bytes);
  }
  jpeg_destroy_decompress(&cinfo);
  return DECODED;
}
