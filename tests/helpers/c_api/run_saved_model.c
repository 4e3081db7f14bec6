/* Runs a SavedModel through the TensorFlow C API, as a server without Python would.
 *
 *   run_saved_model DIRECTORY INPUT_TENSOR DIMS INPUT_FILE [OUTPUT_TENSOR OUTPUT_FILE]...
 *
 * Tensors are named as in the graph ("serving_default_images:0"), DIMS are separated by commas
 * ("2,64,64,3"), files hold raw float32 in C order. With DIMS "string" the input is a batch of one
 * string, the file's content, such as a PNG file. Outputs are float32, or bool with a byte for
 * each. Prints each output's dims on a line.
 */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tensorflow/c/c_api.h"
#include "tensorflow/c/tf_tstring.h"

enum { MAX_OUTPUTS = 32, MAX_RANK = 8 };

static void fail(const char *what, const char *why) {
  fprintf(stderr, "%s: %s\n", what, why);
  exit(1);
}

static void check(const TF_Status *status, const char *what) {
  if (TF_GetCode(status) != TF_OK) fail(what, TF_Message(status));
}

/* "name:1" is output 1 of the operation "name". */
static TF_Output find_tensor(TF_Graph *graph, const char *tensor) {
  char name[512];
  const char *colon = strrchr(tensor, ':');
  if (colon == NULL || (size_t)(colon - tensor) >= sizeof name) fail(tensor, "no tensor name");
  memcpy(name, tensor, colon - tensor);
  name[colon - tensor] = '\0';
  TF_Output output = {TF_GraphOperationByName(graph, name), atoi(colon + 1)};
  if (output.oper == NULL) fail(tensor, "not in the graph");
  return output;
}

static int parse_dims(const char *text, int64_t dims[MAX_RANK]) {
  int rank = 0;
  for (char *end; *text != '\0'; text = *end == ',' ? end + 1 : end) {
    if (rank == MAX_RANK) fail(text, "too many dims");
    dims[rank++] = strtoll(text, &end, 10);
    if (end == text) fail(text, "no number");
  }
  return rank;
}

static TF_Tensor *read_tensor(const char *path, const char *dims_text) {
  int64_t dims[MAX_RANK];
  int rank = parse_dims(dims_text, dims);
  size_t bytes = sizeof(float);
  for (int i = 0; i < rank; i++) bytes *= (size_t)dims[i];
  TF_Tensor *tensor = TF_AllocateTensor(TF_FLOAT, dims, rank, bytes);
  FILE *file = fopen(path, "rb");
  if (tensor == NULL || file == NULL) fail(path, "cannot be read");
  if (fread(TF_TensorData(tensor), 1, bytes, file) != bytes) fail(path, "is too short");
  fclose(file);
  return tensor;
}

/* A batch of one string. TensorFlow owns the tensor's memory, and the string its own. */
static TF_Tensor *read_string(const char *path) {
  const int64_t dims[] = {1};
  TF_Tensor *tensor = TF_AllocateTensor(TF_STRING, dims, 1, sizeof(TF_TString));
  FILE *file = fopen(path, "rb");
  if (tensor == NULL || file == NULL || fseek(file, 0, SEEK_END) != 0) fail(path, "cannot be read");
  long bytes = ftell(file);
  char *content = malloc(bytes > 0 ? (size_t)bytes : 1);
  rewind(file);
  if (bytes < 0 || content == NULL || fread(content, 1, (size_t)bytes, file) != (size_t)bytes)
    fail(path, "cannot be read");
  fclose(file);
  TF_TString *string = TF_TensorData(tensor);
  TF_StringInit(string);
  TF_StringCopy(string, content, (size_t)bytes);
  free(content);
  return tensor;
}

static void write_tensor(const char *path, const TF_Tensor *tensor) {
  TF_DataType type = TF_TensorType(tensor);
  if (type != TF_FLOAT && type != TF_BOOL) fail(path, "the output is neither float32 nor bool");
  FILE *file = fopen(path, "wb");
  if (file == NULL) fail(path, "cannot be written");
  size_t bytes = TF_TensorByteSize(tensor);
  if (fwrite(TF_TensorData(tensor), 1, bytes, file) != bytes || fclose(file) != 0)
    fail(path, "cannot be written");
  for (int i = 0; i < TF_NumDims(tensor); i++)
    printf("%s%lld", i > 0 ? "," : "", (long long)TF_Dim(tensor, i));
  printf("\n");
}

int main(int argc, char **argv) {
  int count = (argc - 5) / 2;
  if (argc < 7 || argc % 2 == 0 || count > MAX_OUTPUTS)
    fail("usage", "run_saved_model DIRECTORY INPUT_TENSOR DIMS INPUT_FILE "
                  "[OUTPUT_TENSOR OUTPUT_FILE]...");
  TF_Status *status = TF_NewStatus();
  TF_Graph *graph = TF_NewGraph();
  TF_SessionOptions *options = TF_NewSessionOptions();
  const char *tags[] = {"serve"};
  TF_Session *session = TF_LoadSessionFromSavedModel(options, NULL, argv[1], tags, 1, graph,
                                                     NULL, status);
  check(status, argv[1]);

  TF_Output input = find_tensor(graph, argv[2]);
  int is_string = strcmp(argv[3], "string") == 0;
  TF_Tensor *images = is_string ? read_string(argv[4]) : read_tensor(argv[4], argv[3]);
  TF_Output outputs[MAX_OUTPUTS];
  TF_Tensor *results[MAX_OUTPUTS];
  for (int i = 0; i < count; i++) outputs[i] = find_tensor(graph, argv[5 + 2 * i]);
  TF_SessionRun(session, NULL, &input, &images, 1, outputs, results, count, NULL, 0, NULL, status);
  check(status, "run");
  for (int i = 0; i < count; i++) {
    write_tensor(argv[6 + 2 * i], results[i]);
    TF_DeleteTensor(results[i]);
  }

  TF_DeleteTensor(images);
  TF_CloseSession(session, status);
  check(status, "close");
  TF_DeleteSession(session, status);
  check(status, "delete");
  TF_DeleteSessionOptions(options);
  TF_DeleteGraph(graph);
  TF_DeleteStatus(status);
  return 0;
}
