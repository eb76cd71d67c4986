// Start Swagger UI. The Content-Security-Policy of the page forbids scripts inside it.
"use strict";

const token = document.body.dataset.csrfToken;
const address = new URL("../openapi.json", document.currentScript.src);

// Swagger UI fills in examples and the least values of fields that may be left out, and sends them: a file would
// expire after an hour.
function leaveOptionalFieldsEmpty(operation) {
  for (const parameter of operation.parameters ?? []) {
    if (!parameter.required) {
      delete parameter.example;
      delete parameter.schema?.example;
      delete parameter.schema?.default;
    }
  }
  const form = operation.requestBody?.content?.["multipart/form-data"]?.schema;
  for (const [name, field] of Object.entries(form?.properties ?? {})) {
    if (!form.required?.includes(name)) {
      form.properties[name] = { type: "string", description: field.description, example: "" };
    }
  }
}

fetch(address)
  .then((answer) => answer.json())
  .then((spec) => {
    Object.values(spec.paths).flatMap(Object.values).forEach(leaveOptionalFieldsEmpty);
    SwaggerUIBundle({
      dom_id: "#docs",
      spec,
      validatorUrl: null, // it would send the document to a server of Swagger's
      deepLinking: true,
      requestInterceptor(request) {
        if (token && !["GET", "HEAD"].includes((request.method ?? "GET").toUpperCase())) {
          request.headers["X-CSRFToken"] = token;
        }
        for (const [name, value] of request.body instanceof FormData ? [...request.body] : []) {
          if (value === "") request.body.delete(name);
        }
        return request;
      },
    });
  });
